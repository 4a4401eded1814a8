// The form around verify.js: takes files and keys from the visitor, fetches from this server what a bundle page offers, and
// shows each comparison. A page without `data-from` fetches nothing at all.
(() => {
  "use strict";

  const TITLES = { signature: "Signature", entry: "Log entry", inclusion: "Inclusion", checkpoint: "Log signature" };
  const NAMES = {
    bundle: "bundle.json",
    sig: "bundle.sig",
    leaf: "leaf.json",
    proof: "bundle.tlog-proof",
    hostKey: "The host's key",
    logKey: "The log's key",
  };
  const KEYS = ["hostKey", "logKey"];

  const isOf = (what, name) => ({ hostKey: /\.pem$/, logKey: /\.vkey$/ })[what]?.test(name) ?? name === NAMES[what];

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
        if (KEYS.includes(what)) ours.push(what);
      }
      missing[what] ??= `${NAMES[what]} is not given.`;
      given[what] = bytes && KEYS.includes(what) ? new TextDecoder().decode(bytes) : bytes;
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

  const conclusion = (lines, ours) => {
    const states = lines.map((line) => line.state);
    if (states.includes("wrong")) return "Something is wrong with this record, its receipt, or the keys.";
    if (states.includes("could not tell")) return "Not everything could be told.";
    const both = "The keys came from this server: this shows that it agrees with itself, not whose keys they are. Give keys that you got elsewhere.";
    const one = "One of the keys came from this server. Give both from elsewhere, and it need not be trusted for them.";
    const yours = "The keys are the ones you gave: no server was trusted.";
    return `All of it verified by this browser. ${[yours, one, both][ours.length]}`;
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
      verdict.textContent = conclusion(lines, given.ours);
      form.dataset.done = lines.every((line) => line.state === "verified") ? "verified" : "not verified";
    });
  }
})();
