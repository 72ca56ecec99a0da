"""Pages without scripts or network: markup, charts, tables, the published figures, and the report of runs."""
