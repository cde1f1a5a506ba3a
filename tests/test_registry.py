"""The registry answers with classes, imports on demand, and explains names it does not know."""

import subprocess
import sys

import pytest

from studio import registry
from studio.errors import ConfigError
from studio.names import nearest


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A kind 'algorithm' with two entries, of which one cannot be imported."""
    (tmp_path / "table_for_test.py").write_text(
        "ALGORITHMS = {'grpo': 'colorful_for_test:Colorful', 'broken': 'no_such_module_for_test:X'}\n"
        "MORE = {'gspo': 'colorful_for_test:Colorful'}\n"
        "AGAIN = {'grpo': 'colorful_for_test:Colorful'}\n"
    )
    (tmp_path / "colorful_for_test.py").write_text("class Colorful:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(registry.TABLES, "algorithm", ("table_for_test:ALGORITHMS", "table_for_test:MORE"))
    yield
    for name in ("table_for_test", "colorful_for_test"):
        sys.modules.pop(name, None)


def test_names_of_all_tables_are_known_without_importing_a_component(tables):
    assert registry.names("algorithm") == ["broken", "grpo", "gspo"]
    assert "colorful_for_test" not in sys.modules


def test_lookup_imports_the_class(tables):
    assert registry.lookup("algorithm", "gspo").__name__ == "Colorful"


def test_unknown_name_is_answered_with_the_nearest_and_the_whole_list(tables):
    with pytest.raises(ConfigError) as error:
        registry.lookup("algorithm", "gpro")
    assert str(error.value) == "no algorithm is named 'gpro'; did you mean 'grpo'? (known: broken, grpo, gspo)"


def test_unknown_kind_is_answered_with_the_kinds():
    with pytest.raises(ConfigError, match="did you mean 'algorithm'.*reward"):
        registry.names("algoritm")


def test_one_name_in_two_tables_is_refused(tables, monkeypatch):
    monkeypatch.setitem(registry.TABLES, "algorithm", ("table_for_test:ALGORITHMS", "table_for_test:AGAIN"))
    with pytest.raises(ConfigError, match="grpo already in another table"):
        registry.names("algorithm")


def test_a_table_entry_that_cannot_be_imported_is_not_hidden(tables):
    with pytest.raises(ModuleNotFoundError, match="no_such_module_for_test"):
        registry.lookup("algorithm", "broken")


@pytest.mark.parametrize(("word", "expected"), [("clp", "clip"), ("CLIP", "clip"), ("qqqq", None), ("lk", "kl")])
def test_nearest_name(word, expected):
    assert nearest(word, ["kl", "clip", "scale"]) == expected


def test_none_of_the_light_modules_imports_torch():
    code = (
        "import sys; import studio.config, studio.registry, studio.run, studio.seeds, studio.names;"
        "sys.exit(sorted({'torch', 'PIL', 'numpy'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
