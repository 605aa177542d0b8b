"""Notebook-first prediction of hospital readmission."""
import os

__version__ = "1.0.0"

QUIET = {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "PLOOMBER_STATS_ENABLED": "false",
         "PLOOMBER_VERSION_CHECK_DISABLED": "true", "RAY_USAGE_STATS_ENABLED": "0"}    # a hospital's data tool calls nobody
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "passive"}    # spinning ones made XGBoost's training 30 times slower on a busy machine
for _name, _value in (QUIET | SLEEPING_THREADS).items(): os.environ.setdefault(_name, _value)
