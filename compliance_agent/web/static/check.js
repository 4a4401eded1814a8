// The form around verify.js: takes files and keys from the visitor, fetches from this server what a bundle page offers, and
// shows each comparison. A page without `data-from` fetches nothing at all.
(() => {
  "use strict";

  const TITLES = {
    signature: "Signature",
    before: "Chain, backwards",
    after: "Chain, forwards",
    entry: "Log entry",
    inclusion: "Inclusion",
    checkpoint: "Log signature",
    witnesses: "Witnesses",
    time: "Time",
  };
  const NAMES = {
    bundle: "bundle.json",
    sig: "bundle.sig",
    leaf: "leaf.json",
    proof: "bundle.tlog-proof",
    hostKey: "The host's key",
    logKey: "The log's key",
    policy: "The policy",
    authority: "The authority for time stamps",
    previous: "The record before it",
    following: "The record after it",
    followingSig: "The signature of the record after it",
    times: "times.json",
  };
  const FILES = { previous: "previous.json", following: "following.json", followingSig: "following.sig" };
  const BESIDE = ["before", "after", "time"]; // what may be untold of a sound record
  const KEYS = ["hostKey", "logKey"];
  const TEXTS = [...KEYS, "policy", "authority"];
  const AUTHORITY = /^(authority|ca|tsa-ca)\.pem$/;

  const isOf = (what, name) =>
    what === "hostKey" ? /\.pem$/.test(name) && !AUTHORITY.test(name) :
      ({ logKey: /\.vkey$/, policy: /^policy$|\.policy$/, authority: AUTHORITY })[what]?.test(name) ?? name === (FILES[what] ?? NAMES[what]);

  const own = async (form, what) => {
    const text = form.querySelector(`textarea[name="${what}"]`)?.value.trim();
    if (text) return new TextEncoder().encode(text);
    const several = Array.from(form.querySelector('input[name="all"]')?.files ?? []);
    const [file] = [...(form.querySelector(`input[name="${what}"]`)?.files ?? []), ...several.filter(({ name }) => isOf(what, name))];
    return file ? new Uint8Array(await file.arrayBuffer()) : null;
  };

  const fetched = async (url, missing, what) => {
    try {
      const reply = await fetch(url, { cache: "no-store" });
      if (reply.ok && !reply.redirected) return new Uint8Array(await reply.arrayBuffer());
      missing[what] = `${NAMES[what]} is not to be had here (${reply.redirected ? "signed out" : reply.status}).`;
    } catch {
      missing[what] = `${NAMES[what]} could not be fetched.`;
    }
    return null;
  };

  const gathered = async (form) => {
    const [given, missing, ours] = [{ missing: {} }, {}, []];
    await Promise.all(Object.keys(NAMES).map(async (what) => {
      let bytes = await own(form, what);
      const url = form.dataset[what];
      if (!bytes && url) {
        bytes = await fetched(url, missing, what);
        if (TEXTS.includes(what)) ours.push(what);
      }
      missing[what] ??= form.dataset[`${what}Why`] ?? `${NAMES[what]} is not given.`;
      given[what] = bytes && TEXTS.includes(what) ? new TextDecoder().decode(bytes) : bytes;
    }));
    return { ...given, missing, ours };
  };

  const shown = (form, line) => {
    const item = form.querySelector(`template[data-state="${line.state}"]`).content.firstElementChild.cloneNode(true);
    item.dataset.line = line.name;
    item.querySelector("strong").textContent = `${TITLES[line.name]}: ${line.state}`;
    item.querySelector("[data-sentence]").textContent = line.sentence;
    return item;
  };

  const WHOSE = [
    "The keys are the ones you gave: no server was trusted.",
    "One of the keys came from this server. Give both from elsewhere, and it need not be trusted for them.",
    "The keys came from this server: this shows that it agrees with itself, not whose keys they are. Give keys that you got elsewhere.",
  ];

  // How it ended, and in words. Nothing is called verified that nobody outside vouches for.
  const conclusion = (lines, given) => {
    const states = Object.fromEntries(lines.map((line) => [line.name, line.state]));
    const untold = lines.filter(({ state }) => state === "could not tell").map(({ name }) => name);
    const beside = untold.filter((name) => BESIDE.includes(name)).map((name) => TITLES[name].toLowerCase());
    const rest = beside.length ? ` Not told: ${beside.join("; ")}.` : "";
    const stamped = given.ours.includes("authority") && /by a time stamp/.test(lines.find(({ name }) => name === "time")?.sentence);
    const told = stamped ? " Whom to believe for a time stamp came from this server, too: give an authority that you got elsewhere." : "";
    const whose = WHOSE[given.ours.filter((what) => KEYS.includes(what)).length] + told;
    const [keys, asked] = [told ? whose.replace(": no server was trusted", "") : whose, given.ours.includes("policy")];
    if (Object.values(states).includes("wrong")) {
      return ["not verified", "Something is wrong with this record, its receipt, or the keys."];
    }
    if (untold.some((name) => name !== "witnesses" && !BESIDE.includes(name))) return ["not verified", "Not everything could be told."];
    if (states.witnesses === "verified") {
      const [done, what] = rest ? ["partly", "Record, log and witnesses"] : ["verified", "All of it"];
      const whom = "Whom to ask for as a witness came from this server: give a policy that you got elsewhere.";
      if (asked) return [done, `${what} verified by this browser.${rest} ${keys.replace(": no server was trusted", "")} ${whom}`];
      return [done, `${what} verified by this browser.${rest} ${keys}`];
    }
    const asks = given.policy && !/^[ \t]*quorum[ \t]+none\b/m.test(given.policy);
    if (states.witnesses === "unwitnessed" && asks && !asked) {
      return ["not verified", "Refused: the log signed it, and fewer witnesses saw it than the policy that you gave asks for."];
    }
    const why = states.witnesses === "unwitnessed" ? "Unwitnessed" : "Its witnesses could not be told";
    return ["unwitnessed", `Record and log verified by this browser. ${why}: nobody outside vouches that everybody is shown this same log.${rest} ${keys}`];
  };

  for (const form of document.querySelectorAll("form[data-check]")) {
    const [list, verdict] = [form.querySelector("[data-lines]"), form.querySelector("[data-verdict]")];
    const forget = () => { // what was said before is not about what is given now
      list.replaceChildren();
      delete form.dataset.done;
    };
    form.addEventListener("input", () => {
      forget();
      verdict.textContent = "";
    });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      forget();
      verdict.textContent = "Checking…";
      const given = await gathered(form);
      const lines = await globalThis.recordProof.check(given);
      list.replaceChildren(...lines.map((line) => shown(form, line)));
      const [done, words] = conclusion(lines, given);
      verdict.textContent = words;
      form.dataset.done = done;
    });
  }
})();
