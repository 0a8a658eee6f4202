"""What a trial is: data, base model, adapter, training session, measurements, files.

Runs without Ray, Optuna and MLflow, so everything here can be tried on a bare machine with a ten-line script.
"""
