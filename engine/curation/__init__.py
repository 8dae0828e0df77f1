"""Gates and decisions: which generated images training may use. Pure numbers and small json files."""
