"""Make figures as Vega-Lite specifications from run documents alone; ``drawing`` renders them."""
