"""What users touch: jobs, results, configuration, the command line."""
