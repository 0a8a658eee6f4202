-- Two databases with a role of its own each: Optuna's studies and MLflow's runs. Passwords come from the environment.
\set ON_ERROR_STOP on
\getenv studies STUDIES_PASSWORD
\getenv runs RUNS_PASSWORD
CREATE ROLE lorafront LOGIN PASSWORD :'studies';
CREATE ROLE mlflow LOGIN PASSWORD :'runs';
CREATE DATABASE lorafront OWNER lorafront;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE ALL ON DATABASE lorafront, mlflow FROM PUBLIC;
