// The record's neighbours in its host's chain, and between which two moments it came to be, for the check in the browser.
//
// before   the digest that the record names, against the bytes of the record before it
// after    the digest that the record after it names, against these bytes; that one's own signature, too
// time     not before: a witness or a time stamp (stamps.js) vouches for what the tree held whose root the record names. Not after:
//          one vouches for a tree with the record's entry. times.json holds what leads there (docs/protocol.md); none is believed.
(() => {
  "use strict";

  const { Wrong, Untold, hex, utf8, same, textOf, fromBase64, sha256, hashLeaf, rootOf } = globalThis.proofFormats;
  const { signed, readPem, noteKeyId, readLogKey, readProof, readCheckpoint } = globalThis.proofFormats;
  const ZEROS = "0".repeat(64);
  const TOLERANCE_MS = 2000; // what a clock may be off
  const MOST_STAMPS = 16; // of one checkpoint

  const read = (bytes, what) => {
    let said = null;
    try {
      said = JSON.parse(textOf(bytes, what));
    } catch {
      // said below
    }
    if (said === null || typeof said !== "object" || Array.isArray(said)) throw new Wrong(`${what} is not a JSON object.`);
    return said;
  };

  const placeOf = (bytes, what) => {
    const said = read(bytes, what);
    if (!Number.isSafeInteger(said.epoch) || !Number.isSafeInteger(said.seq) || typeof said.prev !== "string") {
      throw new Wrong(`${what} does not say its place in the host's chain.`);
    }
    return { epoch: said.epoch, seq: said.seq, prev: said.prev, key: said.host?.key_id };
  };

  const inTurn = (one, next) => {
    const follows = next.epoch === one.epoch ? next.seq === one.seq + 1 : next.epoch > one.epoch && next.seq === 1;
    if (!follows || one.key !== next.key) {
      const places = `epoch ${one.epoch}, seq ${one.seq}, then epoch ${next.epoch}, seq ${next.seq}`;
      throw new Wrong(`The digests are the same, and the two are not neighbours of one chain: ${places}.`);
    }
  };

  const before = async ({ bundle, previous, missing }) => {
    const here = placeOf(bundle, "bundle.json");
    if (here.prev === ZEROS) {
      if (here.seq === 1) return "It is the first record of this host's key; nothing stands before it.";
      throw new Wrong(`It is number ${here.seq}, and names no record before it.`);
    }
    if (!previous?.length) throw new Untold(missing?.previous ?? "The record before it is not given.");
    if (hex(await sha256(previous)) !== here.prev) {
      throw new Wrong("The record before it has another digest than this one names: one was removed, added or changed.");
    }
    inTurn(placeOf(previous, "The record before it"), here);
    return `The record before it has the digest that this one names, ${here.prev.slice(0, 16)}….`;
  };

  const after = async ({ bundle, following, followingSig, hostKey }) => {
    const digest = hex(await sha256(bundle));
    const next = placeOf(following, "The record after it");
    if (!(await signed(readPem(hostKey, "The host's key"), followingSig, following))) {
      throw new Wrong("The record after it is not signed by the host's key.");
    }
    if (next.prev !== digest) {
      throw new Wrong("The record after it names another digest than these bytes have: one was removed, added or changed.");
    }
    inTurn(placeOf(bundle, "bundle.json"), next);
    return `The record after it is signed by the host's key and names these bytes, ${digest.slice(0, 16)}….`;
  };

  // --- time ------------------------------------------------------------------------------------

  const WHY = {
    no_head: "The record names no earlier head of the log.",
    other_head: "The head that the record names is of no log that is served.",
    no_time: "The log holds no such time that a witness has signed.",
    stamps_only: "The log holds time stamps (RFC 3161) there, of no authority that the server is told of; OpenSSL checks them under one.",
    stopped: "The server stopped its search before the log ended.",
    pruned: "What would show it was destroyed when its time was over.",
    unreadable: "The server could not read its log's files.",
  };

  const hashes = (path) => {
    if (!Array.isArray(path)) throw new Wrong("times.json holds no path.");
    return path.map((one, at) => {
      const hash = fromBase64(String(one), `Hash ${at + 1} of a path in times.json`);
      if (hash.length !== 32) throw new Wrong("A hash of a path in times.json is not of 32 bytes.");
      return hash;
    });
  };

  // When the policy's witnesses signed a checkpoint, and when the authority stamped it; `aside` takes why a stamp did not count.
  const timesOf = async (given, checkpoint, note, tokens, aside) => {
    const seen = given.readPolicy ? await globalThis.witnessPolicy.seen(given.readPolicy, checkpoint) : new Map();
    const times = [...seen.values()].map((at) => ({ at: Number(at) * 1000, by: "a witness" }));
    if (!Array.isArray(tokens) || tokens.length > MOST_STAMPS) throw new Wrong("times.json holds no list of time stamps.");
    for (const [number, one] of tokens.entries()) {
      try {
        const token = fromBase64(String(one), "It");
        times.push({ at: await globalThis.timeStamps.time(token, note, given.authority), by: "a time stamp (RFC 3161)" });
      } catch (error) {
        if (error instanceof Wrong) throw new Wrong(`Time stamp ${number + 1} (RFC 3161) over a checkpoint is wrong. ${error.message}`);
        if (!(error instanceof Untold)) throw error;
        aside.add(`A time stamp (RFC 3161) is not checked: ${error.message} OpenSSL checks it.`);
      }
    }
    return times;
  };

  const newest = (times) => times.reduce((one, other) => (one && one.at >= other.at ? one : other), null);
  const earliest = (times) => times.reduce((one, other) => (one && one.at <= other.at ? one : other), null);

  // The newest time in the tree whose root the record names: what no one could have foretold.
  const beginning = async (given, record, said, aside) => {
    const head = record.log_head;
    if (!head || !said.before) return null;
    const [index, leaf] = [said.before.index, fromBase64(String(said.before.leaf), "The time entry")];
    if (!Number.isSafeInteger(index)) throw new Wrong("times.json names no index.");
    if (hex(await rootOf(await hashLeaf(leaf), index, head.size, hashes(said.before.path))) !== head.root) {
      throw new Wrong("The time entry is not in the tree whose root the record names.");
    }
    const entry = read(leaf, "The time entry");
    if (entry.kind !== "time") throw new Wrong("The entry in times.json is not one of time.");
    const note = fromBase64(String(entry.checkpoint), "Its checkpoint");
    const checkpoint = readCheckpoint(textOf(note, "Its checkpoint"));
    if (checkpoint.origin !== head.origin || checkpoint.size > index) throw new Wrong("The time entry holds no earlier checkpoint of that log.");
    return newest(await timesOf(given, checkpoint, note, entry.tokens ?? [], aside));
  };

  const logSigned = async (checkpoint, logKey, origin) => {
    const { name, raw } = await readLogKey(logKey, origin);
    const id = hex(await noteKeyId(name, raw));
    const ours = checkpoint.signatures.filter((line) => line.name === name && line.id === id);
    if (checkpoint.origin !== origin || !ours.length) throw new Wrong("A checkpoint in times.json is not one of this log.");
    for (const line of ours) {
      if (!(await signed(raw, line.signature, utf8(checkpoint.text)))) throw new Wrong("The log did not sign a checkpoint in times.json.");
    }
  };

  // The earliest time at which a witness had signed, or a time stamp was made over, a tree with the record's entry.
  const ending = async (given, said, aside) => {
    const { leaf, proof, logKey } = given;
    const { index, note } = readProof(proof);
    const published = readCheckpoint(note);
    const times = await timesOf(given, published, utf8(note), [], aside);
    if (said.after) {
      const older = fromBase64(String(said.after.checkpoint), "Its checkpoint");
      const checkpoint = readCheckpoint(textOf(older, "Its checkpoint"));
      await logSigned(checkpoint, logKey, published.origin);
      if (!same(await rootOf(await hashLeaf(leaf), index, checkpoint.size, hashes(said.after.path)), checkpoint.root)) {
        throw new Wrong("The entry is not in the tree that the witness is said to have seen.");
      }
      times.push(...(await timesOf(given, checkpoint, older, said.after.tokens ?? [], aside)));
    }
    const found = earliest(times);
    return found && { ...found, at: found.at + 1000 }; // a second later: the time is given in whole ones
  };

  const spoken = (ms) => new Date(ms).toISOString().replace(".000", "");
  const width = (ms) => {
    const [seconds, minutes, hours] = [1, 60, 3600].map((unit) => Math.floor(ms / 1000 / unit));
    if (hours >= 24) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
    return hours ? `${hours} h ${minutes % 60} min` : `${minutes} min ${seconds % 60} s`;
  };

  const time = async (asked) => {
    const record = read(asked.bundle, "bundle.json");
    if (!asked.policy && !asked.authority) throw new Untold(asked.missing?.policy ?? "policy is not given.");
    const given = { ...asked, readPolicy: asked.policy ? await globalThis.witnessPolicy.read(asked.policy) : null };
    const said = given.times?.length ? read(given.times, "times.json") : { why: {} };
    const aside = new Set();
    const [first, last] = [await beginning(given, record, said, aside), await ending(given, said, aside)];
    const [from, to] = [first?.at ?? null, last?.at ?? null];
    const claimed = Date.parse(record.created_at);
    const why = (end) => {
      if (end === "before" && !record.log_head) return WHY.no_head;
      if (!given.times?.length) return given.missing?.times ?? "times.json is not given.";
      return said[end] ? "No witness of the policy signed it." : (WHY[said.why?.[end]] ?? "times.json does not say.");
    };
    const ends = [
      from === null ? `Nothing shows when it began. ${why("before")}` : `Not before ${spoken(from)}, by ${first.by}.`,
      to === null ? `Nothing shows when it was there. ${why("after")}` : `Not after ${spoken(to)}, by ${last.by}.`,
      ...aside,
    ].join(" ");
    const claim = Number.isNaN(claimed) ? "The record names no readable time." : `The record says ${spoken(claimed)}.`;
    if (from !== null && to !== null && from > to) throw new Wrong(`The two ends contradict each other. ${ends}`);
    if ((from !== null && claimed < from - TOLERANCE_MS) || (to !== null && claimed > to + TOLERANCE_MS)) {
      throw new Wrong(`The time that the record names is outside: it was dated wrongly. ${ends} ${claim}`);
    }
    if (from === null || to === null || Number.isNaN(claimed)) throw new Untold(`${ends} ${claim}`);
    return `A stretch of ${width(to - from)}. ${ends} ${claim}`;
  };

  globalThis.recordPlace = { before, after, time };
})();
