"""SVG figures of a report."""
