"""What a trial is: data, base model, adapter, training session, measurements, files.

Runs without Ray, Optuna and MLflow, so everything here can be tried on a bare machine with a ten-line script.
"""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line per cast of every int8 product otherwise
