// One record's proof, computed here: WebCrypto for SHA-256 and Ed25519, and nothing taken from a server but bytes to be checked.
//
//   const lines = await recordProof.check({ bundle, sig, leaf, proof, hostKey, logKey, policy,
//     authority, previous, following, followingSig, times });   // bytes; keys, policy and authority as text
//   lines[0]   // { name: "signature", state: "verified" | "wrong" | "could not tell" | "unwitnessed", sentence: "..." }
//
// before      the record before it, and after: the record after it (moments.js)
// signature   bundle.sig over the exact bytes of bundle.json, under the host's key
// entry       the log entry rebuilt from bundle.json, bundle.sig and the host's key, against leaf.json
// inclusion   leaf.json and the audit path of bundle.tlog-proof, against the root in its checkpoint (RFC 9162, 2.1.3.2)
// checkpoint  that checkpoint under the log's key (C2SP signed-note and tlog-checkpoint)
// witnesses   the cosignatures under it, against a policy of log keys, witnesses and their quorum (policy.js)
// time        between which two moments it came to be, by those witnesses and by time stamps (moments.js)
//
// The formats: docs/protocol.md, read by formats.js.
(() => {
  "use strict";

  const { Wrong, Untold, hex, utf8, same, textOf, toBase64, sha256, hashLeaf, rootOf } = globalThis.proofFormats;
  const { signed, lacking, readPem, noteKeyId, readLogKey, readProof, readCheckpoint } = globalThis.proofFormats;

  // --- the comparisons --------------------------------------------------------------------

  const signature = async ({ bundle, sig, hostKey }) => {
    if (!(await signed(readPem(hostKey, "The host's key"), sig, bundle))) {
      throw new Wrong("The signature is not this key's over exactly these bytes.");
    }
    return `The host's key signed exactly these ${bundle.length} bytes.`;
  };

  const entry = async ({ bundle, sig, leaf, hostKey }) => {
    let said = null;
    try {
      said = JSON.parse(textOf(bundle, "bundle.json"));
    } catch {
      // said below
    }
    const { epoch, seq, prev } = said ?? {};
    if (!Number.isSafeInteger(epoch) || !Number.isSafeInteger(seq) || typeof prev !== "string") {
      throw new Wrong("bundle.json does not say its place in the host's chain.");
    }
    const key = hex(await sha256(readPem(hostKey, "The host's key")));
    const bundle_sha256 = hex(await sha256(bundle));
    const due = { bundle_sha256, epoch, key, kind: "bundle", prev, seq, sig: toBase64(sig), v: 1 }; // sorted: RFC 8785
    if (!same(utf8(JSON.stringify(due)), leaf)) throw new Wrong("leaf.json is not the entry that these bytes must have.");
    return `The entry rebuilt from the record (epoch ${epoch}, seq ${seq}) is leaf.json, byte for byte.`;
  };

  const inclusion = async ({ leaf, proof }) => {
    const { index, path, note } = readProof(proof);
    const { size, root } = readCheckpoint(note);
    const found = await rootOf(await hashLeaf(leaf), index, size, path);
    if (!same(found, root)) throw new Wrong("The path does not lead to the root in the checkpoint.");
    return `Entry ${index} of ${size}: the path of ${path.length} hashes leads to root ${hex(root)}.`;
  };

  const checkpoint = async ({ proof, logKey }) => {
    const { text, origin, signatures } = readCheckpoint(readProof(proof).note);
    const { name, raw } = await readLogKey(logKey, origin);
    if (name !== origin) throw new Wrong(`The checkpoint is of ${origin}, the key of ${name}.`);
    const id = hex(await noteKeyId(name, raw));
    const ours = signatures.filter((line) => line.name === name && line.id === id);
    if (!ours.length) throw new Wrong("The checkpoint is not signed by the log's key.");
    for (const line of ours) {
      if (!(await signed(raw, line.signature, utf8(text)))) throw new Wrong("The log's signature does not verify.");
    }
    return `The log's key signed the checkpoint of ${origin}.`;
  };

  const witnesses = ({ proof, policy }) => globalThis.witnessPolicy.judged(policy, readCheckpoint(readProof(proof).note));

  // Nothing follows of time from a log that does not hold the record.
  const time = async (given) => {
    try {
      for (const due of [signature, entry, inclusion, checkpoint]) await due(given);
    } catch {
      throw new Untold("Nothing can be told of it until signature, entry, inclusion and the log's signature hold.");
    }
    return globalThis.recordPlace.time(given);
  };

  const { before, after } = globalThis.recordPlace;
  const COMPARISONS = { signature, before, after, entry, inclusion, checkpoint, witnesses, time };
  const NEEDED = {
    signature: ["bundle", "sig", "hostKey"],
    before: ["bundle"],
    after: ["bundle", "following", "followingSig", "hostKey"],
    entry: ["bundle", "sig", "leaf", "hostKey"],
    inclusion: ["leaf", "proof"],
    checkpoint: ["proof", "logKey"],
    witnesses: ["proof", "policy"],
    time: ["bundle", "sig", "leaf", "proof", "hostKey", "logKey"],
  };

  // Every comparison on its own, so that a reader sees all that is wrong. `given.missing` says why something is not here.
  const check = async (given) => {
    const lack = await lacking();
    const one = async (name) => {
      const absent = NEEDED[name].filter((what) => !given[what]?.length);
      try {
        if (lack) throw new Untold(lack);
        if (absent.length) throw new Untold(absent.map((what) => given.missing?.[what] ?? `${what} is not given.`).filter(Boolean).join(" "));
        return { name, state: "verified", sentence: await COMPARISONS[name](given) };
      } catch (error) {
        if (error instanceof globalThis.witnessPolicy.Unwitnessed) return { name, state: "unwitnessed", sentence: error.message };
        if (error instanceof Untold) return { name, state: "could not tell", sentence: error.message };
        const sentence = error instanceof Wrong ? error.message : `It cannot be checked: ${error.name}.`;
        return { name, state: "wrong", sentence };
      }
    };
    return Promise.all(Object.keys(COMPARISONS).map(one));
  };

  globalThis.recordProof = { check, lacking, rootOf, hashLeaf, readPem };
})();
