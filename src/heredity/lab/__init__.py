"""Programs on top that both make and measure models: inherit, adapt, repair, tamper, exposure, agentdojo, laws."""
