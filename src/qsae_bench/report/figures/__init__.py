"""Figures as Vega-Lite specifications, made from run documents alone; ``drawing`` renders them."""
