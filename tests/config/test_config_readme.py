"""The examples of the README's chapter on credentials: each loads as it stands."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from relay.config import Config
from tests.support.certificates import Authority

Loader = Callable[..., Config]

README = (Path(__file__).parents[2] / "README.md").read_text()
CHAPTER = README.partition("\n## Credentials\n")[2].partition("\n## ")[0]
EXAMPLES = re.findall(r"```yaml\n(.*?)```", CHAPTER, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_of_the_readme_loads(read: Loader, tmp_path: Path, example: str) -> None:
    """With its variables set and its files in place, without a warning."""
    authority = Authority(tmp_path)
    cert, key = authority.issue("client")
    cert.rename(tmp_path / "client.pem")
    assert key == tmp_path / "client.key"
    names = re.findall(r"\$\{(\w+)\}", example)
    targets = list(yaml.safe_load(example)["targets"])
    rest = f"""
sources:
  shop: {{provider: custom, secrets: ["${{PARTNER_SECRET}}"], verify: {{scheme: bearer}}}}
routes: [{{name: all, from: [shop], to: [{", ".join(targets)}]}}]
"""
    config = read(example + rest, **dict.fromkeys(names, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
    assert [target.name for target in config.targets] == targets
    assert config.warnings == ()


def test_the_chapter_has_examples() -> None:
    """One for each thing that it tells of."""
    assert len(EXAMPLES) == 6
    assert all(key in "".join(EXAMPLES) for key in ("auth:", "oauth2", "sign:", "tls:", "proxy:", "success_when:"))
