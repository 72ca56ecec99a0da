"""The parts of the report's page: `report.py` puts them together."""
