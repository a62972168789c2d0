"""The server's certificate and key: what cannot be served is named before anything is bound."""

from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from textwrap import wrap

import pytest

from relay.config import Config, TlsFiles
from relay.model import ClientTls

Loader = Callable[..., Config]
Refuser = Callable[..., list[str]]

# A self-signed certificate for relay.test that is valid until 2126, one that expired in 2021, one valid from 2090,
# their key, another key, and their key behind a password.
GOOD = (
    "MIIBgTCCASegAwIBAgIUacESL9XNvj8FNHrErhoyEprK33MwCgYIKoZIzj0EAwIwFTETMBEGA1UEAwwKcmVsYXkudGVzdDAgFw0y"
    "NjExMjEyMDQwMDdaGA8yMTI2MTAyODIwNDAwN1owFTETMBEGA1UEAwwKcmVsYXkudGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEH"
    "A0IABEhJ/nowfsEALdSvVh6EPe7HDuhuge0RG+nOwpPZUNF32mXK4QGOcHHz9R/Vs8amR3q6MzFYhZxUTq8xWpJY2gqjUzBRMB0G"
    "A1UdDgQWBBRbGwChcuVwR8rf+LTKP7kV1G93hjAfBgNVHSMEGDAWgBRbGwChcuVwR8rf+LTKP7kV1G93hjAPBgNVHRMBAf8EBTAD"
    "AQH/MAoGCCqGSM49BAMCA0gAMEUCIB20YNpWRWYJGasDz3RoKW6KZqS5ONIfUR4pPX7He8hIAiEAvX4glzz0UlYnfwwDlvSys8Pe"
    "irSiXJJalcbJD3RmHNc="
)
EXPIRED = (
    "MIIBETCBuAIBATAKBggqhkjOPQQDAjAVMRMwEQYDVQQDDApyZWxheS50ZXN0MB4XDTIwMDEwMTAwMDAwMFoXDTIxMDEwMTAwMDAw"
    "MFowFTETMBEGA1UEAwwKcmVsYXkudGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABEhJ/nowfsEALdSvVh6EPe7HDuhuge0R"
    "G+nOwpPZUNF32mXK4QGOcHHz9R/Vs8amR3q6MzFYhZxUTq8xWpJY2gowCgYIKoZIzj0EAwIDSAAwRQIhAJRb+AEcE7mGr5d0+yew"
    "iwTWA4Ud0F/Cxx8H7A70WRTKAiBzfA1e/hwI3q1KrNIvi12316Jo/aBLRFxQOhz1VRyH+A=="
)
FUTURE = (
    "MIIBFjCBvAIBAjAKBggqhkjOPQQDAjAVMRMwEQYDVQQDDApyZWxheS50ZXN0MCIYDzIwOTAwMTAxMDAwMDAwWhgPMjEwMDAxMDEw"
    "MDAwMDBaMBUxEzARBgNVBAMMCnJlbGF5LnRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARISf56MH7BAC3Ur1YehD3uxw7o"
    "boHtERvpzsKT2VDRd9plyuEBjnBx8/Uf1bPGpkd6ujMxWIWcVE6vMVqSWNoKMAoGCCqGSM49BAMCA0kAMEYCIQCl9ZrSq8K6cjGZ"
    "3AkOmu4pcZpZLaDek/LXe4AzqAod0AIhANYp2sTQjnLKe9pav01p4y0r6ipiDKPRvOVKWsmnzjbt"
)
KEY = (
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgzMyhN2kOsKe3jmopNBq6/QNGQLHoN2ft0z7RCZ2vKHWhRANCAARI"
    "Sf56MH7BAC3Ur1YehD3uxw7oboHtERvpzsKT2VDRd9plyuEBjnBx8/Uf1bPGpkd6ujMxWIWcVE6vMVqSWNoK"
)
OTHER_KEY = (
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgslX8mKPhVqvgHsUqpBro1Odg9WmLuYJu1XECGtaAaIuhRANCAART"
    "Zsu2KcELZyZDxwKsCpGsIlE72a9Yh5+Sh06LahR4YCB+ngnqpw7A/JtA8z2FWj4eqBxB/o+VaHJCnXABuS7f"
)
ENCRYPTED_KEY = (
    "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAiRXG7SrJpcewICCAAwDAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoE"
    "ECDYnytaAglsFyAcWKZHzCEEgZBoqlV5JFPKT+QtOpI56KFrJJq0vQHRGozrBVIOQChUaimHGmUJY3r4VxUh2EekAe9kFssJuO+v"
    "N9/oN+gLt1Bx2nm/I3Fveb42TKYM67ifDFoa3djCdqfapfge5tbxeSQC3j+BFgJv/PUKb8qTC/xrVHrgEpojmqLpqud8UFAVjR0n"
    "TWfvus1lahpHKHP7C3Q="
)


def pem(kind: str, content: str) -> str:
    """A PEM block."""
    assert b64decode(content)
    return "\n".join((f"-----BEGIN {kind}-----", *wrap(content, 64), f"-----END {kind}-----", ""))


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A directory with good and bad certificates and keys."""
    folder = tmp_path / "tls"
    folder.mkdir()
    for name, kind, content in (
        ("good", "CERTIFICATE", GOOD),
        ("expired", "CERTIFICATE", EXPIRED),
        ("future", "CERTIFICATE", FUTURE),
        ("key", "PRIVATE KEY", KEY),
        ("other", "PRIVATE KEY", OTHER_KEY),
        ("encrypted", "ENCRYPTED PRIVATE KEY", ENCRYPTED_KEY),
    ):
        (folder / f"{name}.pem").write_text(pem(kind, content))
    return folder


@pytest.mark.row("C54")
@pytest.mark.parametrize(
    ("cert", "key", "message"),
    [
        ("none", "key", "cannot read certificate tls/none.pem: No such file or directory"),
        ("good", "none", "cannot read key tls/none.pem: No such file or directory"),
        ("key", "good", "certificate tls/key.pem is not PEM"),
        ("good", "good", "key tls/good.pem is not PEM"),
        ("good", "other", "key tls/other.pem does not belong to certificate tls/good.pem"),
        ("good", "encrypted", "key tls/encrypted.pem is encrypted; store it without a password"),
    ],
)
@pytest.mark.usefixtures("certificates")
def test_tls_files_that_cannot_be_served_are_named(refused: Refuser, cert: str, key: str, message: str) -> None:
    """Missing, swapped, mismatched and encrypted files are told apart."""
    (line,) = refused(server={"tls": {"cert": f"tls/{cert}.pem", "key": f"tls/{key}.pem"}})
    assert line.startswith(f"server.tls: {message}")


@pytest.mark.row("C54")
@pytest.mark.usefixtures("certificates")
def test_an_own_certificate_out_of_date_is_warned_about(warned: Refuser, build: Loader) -> None:
    """The relay starts with it; who calls will not like it."""
    Path("tls/key.pem").chmod(0o600)
    for name, doubt in (("expired", "has expired"), ("future", "is not valid yet")):
        assert warned(server={"tls": {"cert": f"tls/{name}.pem", "key": "tls/key.pem"}}) == [
            f"server.tls.cert: certificate tls/{name}.pem {doubt}"
        ]
    config = build(server={"tls": {"cert": "tls/good.pem", "key": "tls/key.pem"}})
    assert config.server.tls == TlsFiles(Path("tls/good.pem"), Path("tls/key.pem"))
    assert config.warnings == ()


# --- of a target ---


def one_target(config: Config) -> ClientTls | None:
    (target,) = config.targets
    return target.tls


@pytest.mark.row("T48")
@pytest.mark.parametrize(
    ("tls", "message"),
    [
        ({}, "tls: says nothing; name ca, or cert and key"),
        ({"cert": "tls/good.pem"}, "tls.key: missing; cert needs it"),
        ({"key": "tls/key.pem"}, "tls.cert: missing; key needs it"),
        ({"ca": "tls/none.pem"}, "tls.ca: cannot read CA certificate tls/none.pem: No such file or directory"),
        ({"ca": "tls/key.pem"}, "tls.ca: CA certificate tls/key.pem is not PEM"),
        ({"ca": "tls/torn.pem"}, "tls.ca: CA certificate tls/torn.pem cannot be used"),
        ({"ca": "tls/good.pem", "insecure": True}, "tls.ca: has no meaning beside insecure: true"),
        ({"insecure": "yes"}, "tls.insecure: must be true or false, found string"),
        ({"cert": "tls/none.pem", "key": "tls/key.pem"}, "tls.cert: cannot read certificate tls/none.pem"),
        (
            {"cert": "tls/good.pem", "key": "tls/other.pem"},
            "tls.cert: key tls/other.pem does not belong to certificate",
        ),
        ({"cert": "tls/good.pem", "key": "tls/encrypted.pem"}, "tls.cert: key tls/encrypted.pem is encrypted"),
    ],
)
def test_tls_files_of_a_target_that_cannot_be_used_are_named(
    refused: Refuser, certificates: Path, tls: dict[str, object], message: str
) -> None:
    """Missing, torn, mismatched and encrypted files are told apart before anything is sent."""
    (certificates / "torn.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (line,) = refused(target={"tls": tls})
    assert line.startswith(f"targets.crm.{message}")


@pytest.mark.usefixtures("certificates")
def test_tls_means_nothing_for_plain_http(refused: Refuser) -> None:
    """Whoever writes it believes the target to be encrypted."""
    (line,) = refused(target={"url": "http://127.0.0.1:9000/", "tls": {"ca": "tls/good.pem"}})
    assert line == "targets.crm.tls: has no meaning for an http URL"


@pytest.mark.row("T47")
@pytest.mark.usefixtures("certificates")
def test_what_is_doubtful_about_a_targets_tls_is_warned_about(warned: Refuser) -> None:
    """A hole that is asked for is told at each start; so are certificates out of date and keys in the open."""
    assert warned(target={"tls": {"insecure": True}}) == [
        "targets.crm.tls.insecure: certificates are not checked: anyone on the way can be this target"
    ]
    Path("tls/key.pem").chmod(0o600)
    assert warned(target={"tls": {"cert": "tls/expired.pem", "key": "tls/key.pem"}}) == [
        "targets.crm.tls.cert: certificate tls/expired.pem has expired"
    ]
    Path("tls/key.pem").chmod(0o644)
    assert warned(target={"tls": {"cert": "tls/good.pem", "key": "tls/key.pem"}}) == [
        "targets.crm.tls.key: every user of this machine can read this key; chmod 600 it"
    ]


@pytest.mark.usefixtures("certificates")
def test_another_content_of_a_certificate_is_another_target(build: Loader) -> None:
    """So that a reload takes it up, and `--watch` looks at the file."""
    config = build(target={"tls": {"ca": "tls/good.pem"}})
    first = one_target(config)
    assert Path("tls/good.pem") in config.files
    assert one_target(build(target={"tls": {"ca": "tls/good.pem"}})) == first
    path = Path("tls/good.pem")
    path.write_text(path.read_text() + "\n")
    assert one_target(build(target={"tls": {"ca": "tls/good.pem"}})) != first
