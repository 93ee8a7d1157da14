"""Ask every probe of every model inside one application, judge the answers, and estimate."""
