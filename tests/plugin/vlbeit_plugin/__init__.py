"""A plug-in as another distribution would write it: one stage, one task, one data source."""
