"""Figures as Vega-Lite: what to draw, from run documents alone. Nothing here draws."""
