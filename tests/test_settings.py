"""Settings: the environment over the file over the defaults, and errors that name file, key, value and what is allowed."""
import pytest

from health_predict.settings import FILE_VARIABLE, SettingsError, load_settings


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "settings.ini"))
    (tmp_path / "settings.ini").write_text("")
    return tmp_path / "settings.ini"


@pytest.mark.parametrize("text, named", [
    ("[split]\ntrain = sixty\n", ["settings.ini", "[split] train = 'sixty'", "percent"]),
    ("[split]\ntrain = 150\n", ["[split] train = '150'", "less than or equal to 98"]),
    ("[split]\ntrain = 90\nvalidation = 20\n", ["train = 90 and validation = 20"]),
    ("[spilt]\ntrain = 60\n", ["spilt", "sections are storage, data"]),
    ("[split]\ntrian = 60\n", ["trian", "keys of [split] are train, validation"]),
    ("[model]\nfamilies =\n", ["[model] families"]),
    ("[model]\nfamilies = xgboost, svm\n", ["'svm'", "'logistic', 'forest' or 'xgboost'"]),
    ("[model]\ntarget = 60d\n", ["'60d'", "'any' or '30d'"]),
    ("[threshold]\ncapacity = 0\n", ["capacity", "greater than 0"]),
    ("train = 60\n", ["settings.ini", "not a settings file"]),
    ("[split]\ntrain = 60\ntrain = 61\n", ["already exists"]),
])
def test_bad_file_is_explained(file, text, named):
    file.write_text(text)
    with pytest.raises(SettingsError) as e: load_settings()
    for part in named: assert part in str(e.value)


def test_environment_wins_and_long_names_win_over_short(file, monkeypatch):
    file.write_text("[storage]\nroot = from-file\n[mlflow]\ntracking_uri = http://file\n")
    assert load_settings().storage.root == "from-file"
    monkeypatch.setenv("HEALTH_PREDICT_STORAGE", "short")
    assert load_settings().storage.root == "short"
    monkeypatch.setenv("HEALTH_PREDICT_STORAGE__ROOT", "long")
    assert load_settings().storage.root == "long"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert load_settings().mlflow.tracking_uri == "http://environment"


@pytest.mark.parametrize("name", ["HEALTH_PREDICT_SPLIT_TRAIN", "HEALTH_PREDICT_SPLIT__TRIAN", "HEALTH_PREDICT_DTA"])
def test_unknown_variable_is_refused(file, monkeypatch, name):
    monkeypatch.setenv(name, "60")
    with pytest.raises(SettingsError, match=f"{name} is not a setting.*settings.ini lists all"): load_settings()


def test_value_from_the_environment_is_named_by_its_variable(file, monkeypatch):
    monkeypatch.setenv("HEALTH_PREDICT_DATA__BATCHES", "0")
    with pytest.raises(SettingsError, match=r"HEALTH_PREDICT_DATA__BATCHES: \[data\] batches = '0'.*greater than 0"): load_settings()


def test_missing_named_file_is_refused(monkeypatch):
    monkeypatch.setenv(FILE_VARIABLE, "/nowhere/settings.ini")
    with pytest.raises(SettingsError, match="not a file"): load_settings()
