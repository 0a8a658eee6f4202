"""Who decides and who drives: the search file, the study, Ray Tune, MLflow, the front, the command line."""
