"""Signing in at a provider: who is linked is let in, and every lie of a provider, a network or a browser is refused by its name."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hmac
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc.jwk import OctKey, RSAKey
from starlette.responses import JSONResponse, Response

from compliance_agent.errors import Refusal
from compliance_agent.server.provider_calls import MAX_BYTES, ProviderCalls
from compliance_agent.server.services import id_tokens
from compliance_agent.server.services.id_tokens import signing_keys
from compliance_agent.server.services.oidc import MOST_FLOWS, Client, Oidc, challenge
from compliance_agent.server.services.users import Users
from tests.server.builder import Server, serving
from tests.server.provider import CLIENT, EC, ISSUER, LATER, OTHER, RSA, SECRET, Provider, elsewhere, signed, unsigned

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"
BACK = "https://server.test/login/oidc/callback"


@dataclass
class Scene:
    """A server, a provider, and the desk between them; j.doe is linked."""

    server: Server
    provider: Provider
    oidc: Oidc

    @property
    def users(self) -> Users:
        return self.server.services.users

    async def sign_in(self, change: Callable[[dict[str, str]], dict[str, str]] = dict) -> str:
        """From the first click to a session's secret; `change` is what happens to the answer on its way."""
        address, browser = await self.oidc.begin("/hosts")
        secret, back = await self.oidc.finish(change(self.provider.authorize(address)), browser)
        assert back == "/hosts"
        return secret

    async def refused(self, change: Callable[[dict[str, str]], dict[str, str]] = dict) -> str:
        before = await self.users.sessions.all_of("j.doe")
        with pytest.raises(Refusal) as caught:
            await self.sign_in(change)
        assert await self.users.sessions.all_of("j.doe") == before
        assert str(caught.value).startswith(("sign-in: ", "too many"))
        return caught.value.code


@pytest.fixture
async def scene(server: Server) -> AsyncIterator[Scene]:
    provider = Provider(server.clock)
    calls = ProviderCalls(provider.client(), deadline_s=0.2)
    await server.services.users.add("j.doe", PASSWORD)
    await server.services.users.link("j.doe", ISSUER, "u-1001")
    client = Client(ISSUER, CLIENT, SECRET, BACK)
    oidc = Oidc(server.services.store, server.clock, calls, client, server.services.users.login_federated)
    server.app.state.services = dataclasses.replace(server.services, oidc=oidc)
    yield Scene(server, provider, oidc)
    await calls.close()


async def test_who_is_linked_is_let_in(scene: Scene) -> None:
    secret = await scene.sign_in()
    user = await scene.users.of_session(secret)
    assert user is not None and user.name == "j.doe"
    session = await scene.users.sessions.of(secret)
    assert session is not None and session.proved_at is None
    scene.provider.claims = {"amr": ["pwd", "mfa"]}
    session = await scene.users.sessions.of(await scene.sign_in())
    assert session is not None and session.proved_at == scene.server.clock()


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS256"), (RSA, "PS256"), (EC, "ES256")])
async def test_each_algorithm_of_the_list(scene: Scene, key: Any, algorithm: str) -> None:
    scene.provider.forge = lambda claims: signed(claims, key, algorithm)
    assert await scene.users.of_session(await scene.sign_in()) is not None


def public_as_secret(claims: dict[str, Any]) -> str:
    """HS256 with the provider's public key for a shared secret."""
    head, body, _ = signed(claims, OctKey.generate_key(256), "HS256").split(".")
    mac = hmac.digest(RSA.as_pem(private=False), f"{head}.{body}".encode(), "sha256")
    return f"{head}.{body}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


HOSTILE: dict[str, tuple[Callable[[Provider], Any], str]] = {
    "wrong nonce": (lambda p: p.claims.update(nonce="x" * 43), "wrong_nonce"),
    "no nonce": (lambda p: setattr(p, "drop", ("nonce",)), "wrong_nonce"),
    "alg none": (lambda p: setattr(p, "forge", unsigned), "bad_token"),
    "alg None, and a signature": (lambda p: setattr(p, "forge", lambda c: unsigned(c) + "AAAA"), "bad_token"),
    "HS256 with the public key": (lambda p: setattr(p, "forge", public_as_secret), "bad_token"),
    "RS512": (lambda p: setattr(p, "forge", lambda c: signed(c, RSA, "RS512")), "bad_token"),
    "another key under its name": (lambda p: setattr(p, "forge", lambda c: signed(c, OTHER, "RS256")), "bad_token"),
    "a key that is nowhere": (lambda p: setattr(p, "forge", lambda c: signed(c, LATER, "RS256")), "bad_token"),
    "keys swapped under it": (lambda p: setattr(p, "keys", [OTHER]), "bad_token"),
    "no keys": (lambda p: setattr(p, "keys", []), "bad_token"),
    "a changed claim": (lambda p: setattr(p, "forge", _changed), "bad_token"),
    "critical header": (
        lambda p: setattr(p, "forge", lambda c: signed(c, RSA, "RS256", crit=["b64"], b64=True)),
        "bad_token",
    ),
    "no token": (lambda p: setattr(p, "token_answer", JSONResponse({"access_token": "x"})), "bad_token"),
    "not a token": (lambda p: setattr(p, "forge", lambda c: "a.b"), "bad_token"),
    "a token too long": (lambda p: p.claims.update(x="y" * 20_000), "bad_token"),
    "other audience": (lambda p: p.claims.update(aud="another"), "wrong_audience"),
    "two audiences and no azp": (lambda p: p.claims.update(aud=[CLIENT, "another"]), "wrong_audience"),
    "given to another": (lambda p: p.claims.update(aud=[CLIENT, "another"], azp="another"), "wrong_audience"),
    "no audience": (lambda p: setattr(p, "drop", ("aud",)), "wrong_audience"),
    "expired": (lambda p: p.claims.update(exp=int(p.clock().timestamp()) - 61), "token_expired"),
    "no expiry": (lambda p: setattr(p, "drop", ("exp",)), "token_expired"),
    "made last week": (lambda p: p.claims.update(iat=int(p.clock().timestamp()) - 604_800), "token_expired"),
    "made tomorrow": (lambda p: p.claims.update(iat=int(p.clock().timestamp()) + 86_400), "token_expired"),
    "not valid yet": (lambda p: p.claims.update(nbf=int(p.clock().timestamp()) + 3_600), "token_expired"),
    "time is true": (lambda p: p.claims.update(exp=True), "token_expired"),
    "other issuer in the token": (lambda p: p.claims.update(iss="https://evil.test"), "bad_issuer"),
    "other issuer in the description": (lambda p: p.metadata.update(issuer="https://evil.test"), "bad_issuer"),
    "names nobody": (lambda p: p.claims.update(sub=""), "bad_token"),
    "names a list": (lambda p: p.claims.update(sub=["u-1001"]), "bad_token"),
    "somebody who is not linked": (lambda p: setattr(p, "subject", "u-1002"), "not_linked"),
    "the same address under another subject": (lambda p: p.claims.update(sub="u-9", email="j.doe"), "not_linked"),
    "plain http": (lambda p: p.metadata.update(token_endpoint="http://provider.test/token"), "bad_metadata"),
    "endpoint with a user": (lambda p: p.metadata.update(jwks_uri="https://a:b@provider.test/keys"), "bad_metadata"),
    "no endpoint": (lambda p: p.metadata.update(authorization_endpoint=None), "bad_metadata"),
    "redirect with the code": (lambda p: setattr(p, "token_answer", elsewhere()), "provider_redirected"),
    "token is an error": (lambda p: setattr(p, "token_answer", JSONResponse({"error": "x"}, 400)), "code_refused"),
    "answer is no JSON": (lambda p: setattr(p, "token_answer", Response(b"[" * 9_000)), "bad_metadata"),
    "answer too long": (lambda p: setattr(p, "token_answer", Response(b"x" * (MAX_BYTES + 1))), "bad_metadata"),
    "slow description": (lambda p: setattr(p, "hangs", "metadata"), "provider_unreachable"),
    "slow keys": (lambda p: setattr(p, "hangs", "keys"), "provider_unreachable"),
    "slow token": (lambda p: setattr(p, "hangs", "token"), "provider_unreachable"),
}


def _changed(claims: dict[str, Any]) -> str:
    good = signed(claims, RSA, "RS256").split(".")
    bad = signed({**claims, "sub": "u-1001", "amr": ["mfa"]}, OTHER, "RS256").split(".")
    return ".".join((good[0], bad[1], good[2]))


@pytest.mark.parametrize("name", list(HOSTILE))
async def test_a_lie_of_the_provider_is_refused_by_its_name(scene: Scene, name: str) -> None:
    lie, code = HOSTILE[name]
    lie(scene.provider)
    assert await scene.refused() == code


ANSWERS: dict[str, tuple[Callable[[dict[str, str]], dict[str, str]], str]] = {
    "another state": (lambda q: {**q, "state": "x" * 43}, "bad_state"),
    "no state": (lambda q: {"code": q["code"]}, "bad_state"),
    "mixed up with another issuer": (lambda q: {**q, "iss": "https://evil.test"}, "bad_issuer"),
    "a code of another": (lambda q: {**q, "code": "made-up"}, "code_refused"),
    "no code": (lambda q: {"state": q["state"]}, "provider_refused"),
    "an error": (lambda q: {**q, "error": "access_denied"}, "provider_refused"),
}


@pytest.mark.parametrize("name", list(ANSWERS))
async def test_an_answer_that_was_changed_on_its_way_is_refused(scene: Scene, name: str) -> None:
    change, code = ANSWERS[name]
    assert await scene.refused(change) == code


async def test_a_provider_that_names_itself_must(scene: Scene) -> None:
    scene.provider.metadata["authorization_response_iss_parameter_supported"] = True
    assert await scene.refused() == "bad_issuer"
    assert await scene.sign_in(lambda query: {**query, "iss": ISSUER})


async def test_an_answer_works_once_in_its_own_browser_and_in_time(scene: Scene) -> None:
    address, browser = await scene.oidc.begin("/")
    answer = scene.provider.authorize(address)
    with pytest.raises(Refusal) as caught:
        await scene.oidc.finish(answer, "another browser")
    assert caught.value.code == "bad_state"
    address, browser = await scene.oidc.begin("/")
    answer = scene.provider.authorize(address)
    await scene.oidc.finish(answer, browser)
    for _ in range(2):
        with pytest.raises(Refusal) as caught:
            await scene.oidc.finish(answer, browser)
        assert caught.value.code == "bad_state"
    address, browser = await scene.oidc.begin("/")
    scene.server.clock.move(601)
    with pytest.raises(Refusal) as caught:
        await scene.oidc.finish(scene.provider.authorize(address), browser)
    assert caught.value.code == "bad_state"


async def test_two_answers_at_once_let_one_in(scene: Scene) -> None:
    address, browser = await scene.oidc.begin("/")
    answer = scene.provider.authorize(address)
    ended = await asyncio.gather(*(scene.oidc.finish(answer, browser) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(item, tuple) for item in ended) == 1


async def test_a_code_that_was_used_elsewhere_is_refused(scene: Scene) -> None:
    def used(query: dict[str, str]) -> dict[str, str]:
        scene.provider.codes.pop(query["code"])
        return query

    assert await scene.refused(used) == "code_refused"


async def test_the_verifier_is_shown_only_at_the_end(scene: Scene) -> None:
    """A code that was stolen on its way is of no use: the challenge is a hash, and the provider checks it."""
    address, _ = await scene.oidc.begin("/")
    asked = parse_qs(urlsplit(address).query)
    assert len(asked["code_challenge"][0]) == 43 and "code_verifier" not in asked
    assert challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"

    def wrong(query: dict[str, str]) -> dict[str, str]:
        scene.provider.codes[query["code"]] = (challenge("another"), scene.provider.codes[query["code"]][1])
        return query

    assert await scene.refused(wrong) == "code_refused"


async def test_keys_are_kept_and_fetched_anew_when_one_is_new(scene: Scene) -> None:
    await scene.sign_in()
    await scene.sign_in()
    assert scene.provider.calls.count("keys") == scene.provider.calls.count("metadata") == 1
    scene.provider.keys = [LATER]
    scene.provider.forge = lambda claims: signed(claims, LATER, "RS256")
    assert await scene.refused() == "bad_token", "not more than once a minute"
    scene.server.clock.move(61)
    assert await scene.sign_in()
    assert scene.provider.calls.count("keys") == 2
    scene.provider.forge = None
    scene.server.clock.move(61)
    assert await scene.refused() == "bad_token", "the key that went is not believed any more"


async def test_who_is_unlinked_or_disabled_is_not_let_in(scene: Scene) -> None:
    secret = await scene.sign_in()
    await scene.users.link("j.doe", ISSUER, "u-1001", linked=False)
    assert await scene.users.of_session(secret) is None
    assert await scene.refused() == "not_linked"
    await scene.users.link("j.doe", ISSUER, "u-1001")
    await scene.users.set_disabled("j.doe", True)
    assert await scene.refused() == "not_linked"


async def test_an_identity_belongs_to_one_person(scene: Scene) -> None:
    await scene.users.add("other", PASSWORD)
    for act, code in (
        (scene.users.link("other", ISSUER, "u-1001"), "identity_linked"),
        (scene.users.link("other", ISSUER, "u-1001", linked=False), "no_such_identity"),
        (scene.users.link("nobody", ISSUER, "u-7"), "no_such_user"),
    ):
        with pytest.raises(Refusal) as caught:
            await act
        assert caught.value.code == code
    await scene.users.link("other", "https://another.test", "u-1001")  # the same subject elsewhere is somebody else


async def test_sign_ins_that_nobody_finishes_fill_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compliance_agent.server.services.oidc.MOST_FLOWS", 3)
    for _ in range(3):
        await scene.oidc.begin("/")
    assert await scene.refused() == "busy"
    scene.server.clock.move(601)
    assert await scene.sign_in() and MOST_FLOWS == 1_000


def test_keys_that_may_not_sign_are_left_out() -> None:
    public = RSA.as_dict(private=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is small is the point
        small = RSAKey.generate_key(1024, {"kid": "s"}).as_dict(private=False)
        bad = [
            {**public, "use": "enc"},
            RSA.as_dict(private=True),
            {"kty": "oct", "k": "AAAA"},
            small,
            {"kty": "RSA"},
            7,
        ]
        assert [key.kid for key in signing_keys({"keys": [*bad, public]})] == ["r1"]
    documents: list[Any] = [{}, [], {"keys": 7}]
    for document in documents:
        with pytest.raises(Refusal):
            signing_keys(document)


async def test_a_verifier_that_believes_is_caught(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: without each of the looks, the lie that it is for gets in."""
    for name, lie in (
        ("_check_audience", "other audience"),
        ("_check_times", "expired"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(id_tokens, name, lambda *_: None)
            scene.provider.claims = {}
            with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
                await test_a_lie_of_the_provider_is_refused_by_its_name(scene, lie)


# --- as a browser sees it -------------------------------------------------------------------------


async def test_a_browser_goes_there_and_back(scene: Scene) -> None:
    client = scene.server.client
    page = await client.get("/login?next=/account")
    assert 'href="/login/oidc?next=/account"' in page.text and "provider.test" in page.text
    away = await client.get("/login/oidc?next=/account")
    assert away.status_code == 303 and away.headers["location"].startswith(f"{ISSUER}/authorize?")
    assert "samesite=lax" in away.headers["set-cookie"].lower() and "httponly" in away.headers["set-cookie"].lower()
    answer = scene.provider.authorize(away.headers["location"])
    home = await client.get("/login/oidc/callback", params=answer)
    assert home.status_code == 200 and 'url=/account"' in home.text
    assert any("session=" in one and "samesite=strict" in one.lower() for one in home.headers.get_list("set-cookie"))
    assert (await client.get("/account")).status_code == 200
    again = await client.get("/login/oidc/callback", params=answer)
    assert again.status_code == 403 and "bad_state" in again.text
    token = page.text.partition('name="form_token" value="')[2][:43]
    out = await client.post("/logout", data={"form_token": token})
    assert out.headers["location"] == "/login?out=1"
    page = await client.get("/login?out=1")
    assert f"{ISSUER}/logout?client_id={CLIENT}" in page.text


async def test_a_browser_that_began_nothing_is_signed_in_nowhere(scene: Scene) -> None:
    """Somebody else's answer, put before this browser, does not sign it in as them."""
    address, _ = await scene.oidc.begin("/")
    answer = scene.provider.authorize(address)
    page = await scene.server.client.get("/login/oidc/callback", params=answer)
    assert page.status_code == 403 and "session=" not in page.headers.get("set-cookie", "")
    twice = await scene.server.client.get(f"/login/oidc/callback?state={answer['state']}&state=x&code=y")
    assert twice.status_code == 403


@pytest.mark.parametrize("back", ["//evil.test", "https://evil.test", "/\\evil.test"])
async def test_it_never_leads_elsewhere(scene: Scene, back: str) -> None:
    away = await scene.server.client.get("/login/oidc", params={"next": back})
    home = await scene.server.client.get(
        "/login/oidc/callback", params=scene.provider.authorize(away.headers["location"])
    )
    assert 'url=/"' in home.text and "evil" not in home.text


async def test_without_a_provider_there_is_no_such_way(server: Server) -> None:
    for path in ("/login/oidc", "/login/oidc/callback"):
        assert (await server.client.get(path)).status_code == 404
    assert "/login/oidc" not in (await server.client.get("/login")).text


async def test_a_client_that_demands_a_factor_takes_the_providers_word(tmp_path: Path) -> None:
    async with serving(tmp_path / "strict", second_factor_for="all") as server:
        users = server.services.users
        await users.add("j.doe", PASSWORD)
        await users.link("j.doe", ISSUER, "u-1001")
        for methods, there in ((True, True), (False, False)):
            secret = await users.login_federated(id_tokens.Claims(ISSUER, "u-1001", methods))
            assert (await users.of_session(secret) is not None) is there


async def test_the_secret_stays_in_its_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o600)
    settings: dict[str, Any] = {"oidc_issuer": ISSUER, "oidc_client_id": CLIENT, "public_url": "https://server.test"}
    async with serving(tmp_path / "data", oidc_client_secret_file=secret, **settings) as server:
        oidc = server.services.oidc
        assert oidc is not None and oidc.client == Client(ISSUER, CLIENT, SECRET, BACK)
        assert SECRET not in repr(server.services.settings)
