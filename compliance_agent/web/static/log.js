// An older checkpoint of a log against its newest one, computed in the browser: WebCrypto, and nothing believed of the server.
//
// older         the older checkpoint under the log's key
// newest        the newest one under the same key
// consistency   the path between them, against both roots (RFC 9162, 2.1.4.2)
//
// What the server gives is `old <size>`, the path, an empty line and the newest checkpoint: what a witness is given (C2SP tlog-witness).
(() => {
  "use strict";

  const { Wrong, Untold, hex, utf8, textOf, fromBase64, wholeNumber, continued } = globalThis.proofFormats;
  const { signed, lacking, noteKeyId, readLogKey, readCheckpoint } = globalThis.proofFormats;
  const TITLES = { older: "The older checkpoint", newest: "The newest checkpoint", consistency: "Consistency" };

  // --- the comparisons -------------------------------------------------------------------------

  const under = async (note, logKey, what) => {
    const checkpoint = readCheckpoint(note);
    const { name, raw } = await readLogKey(logKey, checkpoint.origin);
    if (name !== checkpoint.origin) throw new Wrong(`${what} is of ${checkpoint.origin}, the key of ${name}.`);
    const id = hex(await noteKeyId(name, raw));
    const ours = checkpoint.signatures.filter((line) => line.name === name && line.id === id);
    if (!ours.length) throw new Wrong(`${what} is not signed by the log's key.`);
    for (const line of ours) {
      if (!(await signed(raw, line.signature, utf8(checkpoint.text)))) throw new Wrong(`The log's signature on ${what.toLowerCase()} does not verify.`);
    }
    return `The log's key signed it: ${checkpoint.size} entries of ${checkpoint.origin}.`;
  };

  const readConsistency = (string) => {
    const end = string.indexOf("\n\n");
    const [head, ...lines] = string.slice(0, Math.max(end, 0)).split("\n");
    if (!head.startsWith("old ")) throw new Wrong("The path does not begin with the size that it is from.");
    const path = lines.map((line, at) => fromBase64(line, `Hash ${at + 1} of the path`));
    if (path.some((hash) => hash.length !== 32)) throw new Wrong("A hash of the path is not of 32 bytes.");
    return { old: wholeNumber(head.slice(4), "The size that the path is from"), path, note: string.slice(end + 2) };
  };

  const consistency = async ({ older, proof }) => {
    const [from, { old, path, note }] = [readCheckpoint(older), readConsistency(proof)];
    const to = readCheckpoint(note);
    if (from.origin !== to.origin) throw new Wrong(`They are of two logs: ${from.origin} and ${to.origin}.`);
    if (from.size > to.size) throw new Wrong(`The newest has ${to.size} entries, and the log signed ${from.size} before: it was set back.`);
    if (old !== from.size) throw new Wrong(`The path is from a tree of ${old} entries, not of ${from.size}.`);
    if (from.size === 0) return "The empty tree begins every other.";
    await continued(from.size, to.size, path, from.root, to.root);
    return `Its ${from.size} entries are the first of the newest ${to.size}: none was changed, removed or moved.`;
  };

  const check = async (given) => {
    const lack = await lacking();
    const one = async (name, needed, compare) => {
      const absent = needed.filter((what) => !given[what]);
      try {
        if (lack) throw new Untold(lack);
        if (absent.length) throw new Untold(absent.map((what) => given.missing?.[what] ?? `${what} is not given.`).join(" "));
        return { name, state: "verified", sentence: await compare() };
      } catch (error) {
        if (error instanceof Untold) return { name, state: "could not tell", sentence: error.message };
        return { name, state: "wrong", sentence: error instanceof Wrong ? error.message : `It cannot be checked: ${error.name}.` };
      }
    };
    return Promise.all([
      one("older", ["older", "logKey"], () => under(given.older, given.logKey, TITLES.older)),
      one("newest", ["proof", "logKey"], () => under(readConsistency(given.proof).note, given.logKey, TITLES.newest)),
      one("consistency", ["older", "proof"], () => consistency(given)),
    ]);
  };

  // --- the form --------------------------------------------------------------------------------

  const fetched = async (url, what, missing) => {
    try {
      const reply = await fetch(url, { cache: "no-store" });
      if (reply.ok && !reply.redirected) return textOf(new Uint8Array(await reply.arrayBuffer()), what);
      missing[what] = `It is not to be had here (${reply.redirected ? "signed out" : reply.status}).`;
    } catch (error) {
      missing[what] = error instanceof Wrong ? error.message : "It could not be fetched.";
    }
    return "";
  };

  const own = async (form, name) => {
    const text = form.querySelector(`textarea[name="${name}"]`).value.replace(/\r\n/g, "\n");
    if (text.trim()) return name === "older" ? text.replace(/\n*$/, "\n").replace(/^\n+/, "") : text.trim();
    const [file] = form.querySelector(`input[name="${name}"]`).files;
    return file ? new TextDecoder().decode(new Uint8Array(await file.arrayBuffer())) : "";
  };

  const gathered = async (form, address) => {
    const missing = { older: "No older checkpoint is given.", proof: "Without it there is nothing to ask for." };
    const older = address ? await fetched(address, "older", missing) : await own(form, "older");
    const brought = await own(form, "logKey");
    const logKey = brought || (await fetched(form.dataset.logKey, "logKey", missing));
    let size = null;
    try {
      size = older ? readCheckpoint(older).size : null;
    } catch {
      missing.proof = "The older checkpoint cannot be read.";
    }
    const proof = size ? await fetched(`${form.dataset.consistency}${size}`, "proof", missing) : "";
    return { older, logKey, proof, missing, brought: Boolean(brought) };
  };

  const conclusion = (lines, brought) => {
    const whose = brought ? "The key is the one you gave." : "The key came from this server: give one that you got elsewhere.";
    const states = lines.map(({ state }) => state);
    if (states.includes("wrong")) {
      const [older, newest, between] = states;
      const both = older === "verified" && newest === "verified" && between === "wrong";
      return ["not verified", both ? `The log signed two histories. Keep both checkpoints: they prove it. ${whose}` : "Something is wrong with these checkpoints, or the key."];
    }
    if (states.includes("could not tell")) return ["not verified", "Not everything could be told."];
    return ["verified", `The newest checkpoint goes on from this one, verified by this browser. ${whose}`];
  };

  for (const form of document.querySelectorAll("form[data-hold]")) {
    const [list, verdict] = [form.querySelector("[data-lines]"), form.querySelector("[data-verdict]")];
    const shown = (line) => {
      const item = form.querySelector(`template[data-state="${line.state}"]`).content.firstElementChild.cloneNode(true);
      item.dataset.line = line.name;
      item.querySelector("strong").textContent = `${TITLES[line.name]}: ${line.state}`;
      item.querySelector("[data-sentence]").textContent = line.sentence;
      return item;
    };
    const forget = (words) => {
      list.replaceChildren();
      delete form.dataset.done;
      verdict.textContent = words;
    };
    form.addEventListener("input", () => forget(""));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const address = event.submitter?.dataset.older;
      forget("Checking…");
      const given = await gathered(form, address);
      const lines = await check(given);
      list.replaceChildren(...lines.map(shown));
      const [done, words] = conclusion(lines, given.brought);
      verdict.textContent = words;
      form.dataset.done = done;
    });
  }

  globalThis.logProof = { check };
})();
