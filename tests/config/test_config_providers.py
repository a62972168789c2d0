"""The README's chapter on providers, and what the config makes of each: names, secrets, overrides."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.cli.starter import text
from relay.config import ConfigRefused, load
from relay.model import ApiKeyCheck, HmacCheck, NoCheck, StandardWebhooksCheck
from relay.providers import PROVIDERS

ROOT = Path(__file__).parents[2]
CHAPTER = (ROOT / "README.md").read_text().partition("## Providers")[2].partition("\n## ")[0]
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", CHAPTER, re.MULTILINE | re.DOTALL)
ROWS = {
    cells[0].strip("` "): [cell.strip() for cell in cells[1:]]
    for line in CHAPTER.splitlines()
    if line.startswith("| `") and (cells := line.strip("|").split("|"))
}
WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TARGETS = {"crm": {"url": "http://127.0.0.1:9/"}}


def proven_by(name: str) -> str:
    check = PROVIDERS[name].check
    if isinstance(check, NoCheck):
        return "nothing: a secret path or `allow_ips`"
    how = {"xoxoday": "the key", "gitlab": "the token"}.get(name, "HMAC")
    assert isinstance(check, ApiKeyCheck) is (how != "HMAC")
    return f"{how} in `{check.header}`"


def test_the_readme_has_a_row_for_each_provider() -> None:
    """Name, header and whose vector, in step with the code; `custom` is no provider and comes last."""
    assert list(ROWS)[-1] == "custom"
    told = {name: (cells[0], cells[3]) for name, cells in ROWS.items() if name not in {"provider", "custom"}}
    assert told == {
        name: (proven_by(name), "the vendor's" if provider.vectors[0].by_vendor else "ours")
        for name, provider in PROVIDERS.items()
    }


def load_from(tmp_path: Path, document: dict[str, Any] | str, **environ: str) -> Any:
    file = tmp_path / "config.yaml"
    file.write_text(document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False))
    file.chmod(0o600)
    return load(file, environ)


@pytest.mark.parametrize("example", EXAMPLES, ids=[str(number) for number, _ in enumerate(EXAMPLES, 1)])
def test_every_example_of_the_chapter_is_accepted(tmp_path: Path, example: str) -> None:
    """As it stands, the placeholder filled in and variables set; targets and routes are added where it has none."""
    example = example.replace("PUT-32-RANDOM-HEX-DIGITS-HERE", "4f9d2c7a81e04b6f93d50c1b2a3e4d5f")
    environ = dict.fromkeys(re.findall(r"\$\{([A-Z_]+)\}", example), WHSEC)
    document = yaml.safe_load(example)
    whole = {
        "targets": TARGETS,
        "routes": [{"name": "all", "from": list(document["sources"]), "to": ["crm"]}],
    } | document
    config = load_from(tmp_path, whole, **environ)
    assert {source.name for source in config.sources} >= set(document["sources"])
    assert len(EXAMPLES) == 3


def test_the_example_config_and_the_starter_name_them_all() -> None:
    """So that nobody has to read the code to find a name."""
    for where in ((ROOT / "config.example.yaml").read_text(), text(store="sqlite:///relay.db")):
        assert [name for name in PROVIDERS if not re.search(rf"\b{name}\b", where)] == []


def one(provider: str, **section: Any) -> dict[str, Any]:
    section = {"secrets": [WHSEC]} | section if PROVIDERS[provider].signed else section
    return {
        "sources": {"it": {"provider": provider} | section},
        "targets": TARGETS,
        "routes": [{"name": "all", "from": ["it"], "to": ["crm"]}],
    }


@pytest.mark.parametrize("name", [name for name, provider in PROVIDERS.items() if provider.signed])
def test_a_provider_needs_nothing_but_its_secret(tmp_path: Path, name: str) -> None:
    """Check, names and challenge are built in; a Standard Webhooks secret is decoded, any other is its text."""
    (source,) = [found for found in load_from(tmp_path, one(name)).sources if found.name == "it"]
    provider = PROVIDERS[name]
    assert (source.event_type, source.dedupe_key) == (provider.event_type, provider.dedupe_key)
    assert (source.challenge, type(source.check)) == (provider.challenge, type(provider.check))
    decoded = isinstance(provider.check, StandardWebhooksCheck)
    assert len(source.check.secrets[0].value) == (24 if decoded else len(WHSEC))


def test_what_verify_says_wins_over_the_provider(tmp_path: Path) -> None:
    """Key by key; the rest stays as the vendor has it."""
    section = one("stripe", verify={"header": "Other-Signature", "prefix": "v2=", "tolerance": "10m"})
    (source,) = [found for found in load_from(tmp_path, section).sources if found.name == "it"]
    own = PROVIDERS["stripe"].check
    assert isinstance(own, HmacCheck)
    assert isinstance(source.check, HmacCheck)
    assert (source.check.header, source.check.prefix) == ("Other-Signature", "v2=")
    assert (source.check.listing, source.check.signed) == (own.listing, own.signed)
    assert source.check.tolerance.total_seconds() == 600


@pytest.mark.parametrize(
    ("provider", "verify", "said"),
    [
        ("stripe", {"timestamp_header": "X-T"}, "has no meaning: the proofs' header holds the timestamp too"),
        ("stripe", {"signed": "{timestamp}.{id}.{body}"}, "sources.it.verify.id_header: missing; signed holds {id}"),
        ("stripe", {"signed": "{body}", "tolerance": "1m"}, "has no meaning unless signed holds {timestamp}"),
        ("stripe", {"scheme": "standard_webhooks"}, "Stripe is checked by hmac; another scheme needs provider: custom"),
        ("svix", {"header": "webhook-signature"}, "has no meaning for scheme standard_webhooks"),
        ("gitlab", {"prefix": "x"}, "has no meaning for scheme api_key"),
    ],
)
def test_what_does_not_fit_a_provider_is_refused(tmp_path: Path, provider: str, verify: Any, said: str) -> None:
    """With the place, and what would fit."""
    with pytest.raises(ConfigRefused) as refused:
        load_from(tmp_path, one(provider, verify=verify))
    assert said in str(refused.value)


def test_mollies_classic_webhooks_want_a_secret_path(tmp_path: Path) -> None:
    """Nothing else keeps strangers out."""
    with pytest.raises(ConfigRefused, match="signs nothing: name its addresses under allow_ips, or give a path"):
        load_from(tmp_path, one("mollie_classic"))


@pytest.mark.parametrize("name", ["stripe", "svix", "standard_webhooks", "gitlab_signed"])
def test_a_secret_that_is_not_the_usual_one_is_warned_about(tmp_path: Path, name: str) -> None:
    """Most likely it is another of the vendor's many keys."""
    config = load_from(tmp_path, one(name, secrets=["sk_live_0123456789abcdef"]))
    assert any("secret has not the usual format" in str(warning) for warning in config.warnings)
