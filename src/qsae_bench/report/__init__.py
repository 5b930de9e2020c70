"""Tables and pages made from a run document."""
