// Whom to trust (C2SP tlog-policy), and who of them saw a checkpoint (C2SP tlog-cosignature): Ed25519 lines, type 0x04, and
// ML-DSA-44 lines, type 0x06.
//
//   await witnessPolicy.judged(text, checkpoint)   // the sentence; throws Wrong, Untold, or Unwitnessed
//
// The rules are those of the policy parser on the server: what that refuses is refused here. In a browser without ML-DSA-44 such a
// line counts for nothing, and where it could make the quorum nobody is called absent.
(() => {
  "use strict";

  const { Wrong, Untold, hex, utf8, joined, fromBase64, noteKeyId, refuseWeak, signed, same } = globalThis.proofFormats;
  const [PLAIN, COSIGNED, MLDSA44] = [1, 4, 6];
  const LENGTHS = { [PLAIN]: 32, [COSIGNED]: 32, [MLDSA44]: 1312 };
  const SIGNED = { [COSIGNED]: 72, [MLDSA44]: 2428 }; // bytes of a cosignature: eight of time, then the signature
  const NAME = /^[^\s+\x00-\x1f\x85]+$/u;
  const OFFLINE = "compliance-agent verify --policy checks it.";
  const LAST = 2n ** 63n - 1n; // second that a cosignature may say

  class Unwitnessed extends Error {} // signed by the log, and seen by fewer others than the policy asks for, or by none

  // --- the policy ------------------------------------------------------------------------------

  const readKey = async (vkey, type) => {
    const [name, id] = vkey.split("+", 2);
    const material = fromBase64(vkey.slice(name.length + 10), "its key", Untold);
    const [kind, raw] = [material[0], material.slice(1)];
    if (![type, MLDSA44].includes(kind)) throw new Untold(`a key of type ${kind} does not sign here`);
    if (!NAME.test(name) || raw.length !== LENGTHS[kind] || hex(await noteKeyId(name, raw, kind)) !== id) {
      throw new Untold("its key has another id than it names: it was not copied whole");
    }
    if (kind !== MLDSA44) refuseWeak(raw, "a key of the policy");
    return { name, id, kind, raw };
  };

  const number = (word) => (/^(0|[1-9][0-9]*)$/.test(word) ? Number(word) : NaN);

  const readers = {
    log: async (policy, [vkey, ...url]) => {
      if (!vkey || url.length > 1) throw new Untold("it is not a log line");
      policy.logs.push(unlike(await readKey(vkey, PLAIN), policy.logs));
    },
    witness: async (policy, [name, vkey, ...url]) => {
      if (!vkey || url.length > 1) throw new Untold("it is not a witness line");
      defined(policy, name);
      policy.witnesses.set(name, unlike(await readKey(vkey, COSIGNED), [...policy.witnesses.values()]));
    },
    group: async (policy, [name, threshold, ...members]) => {
      if (!members.length || new Set(members).size < members.length || !members.every((one) => policy.free.has(one))) {
        throw new Untold("a member is not defined above, or is in a group already");
      }
      members.forEach((one) => policy.free.delete(one));
      defined(policy, name);
      const least = { any: 1, all: members.length }[threshold] ?? number(threshold);
      if (!(least >= 1 && least <= members.length)) throw new Untold(`its threshold is not from 1 to ${members.length}`);
      policy.groups.set(name, { least, members });
    },
    quorum: async (policy, [name, ...more]) => {
      const known = name === "none" || policy.witnesses.has(name) || policy.groups.has(name);
      if (policy.quorum || more.length || !known) throw new Untold("it is not the only quorum, or names nothing that is defined above");
      policy.quorum = name;
    },
  };

  const defined = (policy, name) => {
    if (name === "none" || policy.witnesses.has(name) || policy.groups.has(name)) throw new Untold("its name is taken");
    policy.free.add(name);
  };

  const unlike = (key, others) => {
    if (others.some((other) => same(other.raw, key.raw))) throw new Untold("its key stands on a line above already");
    return key;
  };

  const read = async (text) => {
    const policy = { logs: [], witnesses: new Map(), groups: new Map(), quorum: "", free: new Set() };
    for (const [at, line] of text.split("\n").entries()) {
      const [word, ...words] = line.split(/[ \t]+/).filter(Boolean);
      try {
        if (/[\x00-\x08\x0b-\x1f\x7f]/.test(line)) throw new Untold("it holds a control character");
        if (!word || word.startsWith("#")) continue;
        if (!Object.hasOwn(readers, word)) throw new Untold("it is not a log, witness or group, nor the quorum");
        await readers[word](policy, words);
      } catch (error) {
        throw new Untold(`Line ${at + 1} of the policy cannot be used: ${error.message.replace(/\.$/, "")}.`);
      }
    }
    if (!policy.quorum) throw new Untold("The policy has no quorum line.");
    return policy;
  };

  // Whether these witnesses are a quorum: a group names only what stands before it.
  const met = (policy, names) => {
    const seen = new Set(names);
    for (const [name, { least, members }] of policy.groups) {
      if (members.filter((one) => seen.has(one)).length >= least) seen.add(name);
    }
    return seen.has(policy.quorum);
  };

  // --- the checkpoint --------------------------------------------------------------------------

  const linesOf = (key, checkpoint) => checkpoint.signatures.filter(({ name, id }) => name === key.name && id === key.id);

  const importMldsa = (raw) => crypto.subtle.importKey("raw-public", raw, { name: "ML-DSA-44" }, false, ["verify"]);

  // Whether this browser's WebCrypto has ML-DSA-44: any 1312 bytes are a key.
  const hasMldsa = async () => {
    try {
      await importMldsa(new Uint8Array(LENGTHS[MLDSA44]));
      return true;
    } catch {
      return false;
    }
  };

  const u64 = (number) => Uint8Array.from({ length: 8 }, (_, at) => Number((BigInt(number) >> BigInt(56 - 8 * at)) & 0xffn));

  const prefixed = (name) => {
    const raw = utf8(name);
    if (raw.length < 1 || raw.length > 255) throw new Wrong("A name of a cosigner or log is not of 1 to 255 bytes.");
    return joined([raw.length], raw);
  };

  // What type 0x06 signs: the cosigner's name and the tree, but no further lines of the checkpoint.
  const mldsaMessage = (name, at, { origin, size, root }) =>
    joined(utf8("subtree/v1\n\0"), prefixed(name), u64(at), prefixed(origin), u64(0), u64(size), root);

  const verifies = async (key, signature, at, checkpoint) => {
    if (key.kind === COSIGNED) return signed(key.raw, signature, utf8(`cosignature/v1\ntime ${at}\n${checkpoint.text}`));
    return crypto.subtle.verify({ name: "ML-DSA-44" }, await importMldsa(key.raw), signature, mldsaMessage(key.name, at, checkpoint));
  };

  // The time of a cosignature, in seconds since 1970 as a BigInt; Wrong when it does not verify.
  const cosignedAt = async (key, line, checkpoint) => {
    if (line.signature.length !== SIGNED[key.kind]) throw new Wrong(`A line of ${key.name} is no cosignature.`);
    const at = BigInt(`0x${hex(line.signature.slice(0, 8))}`);
    if (at > LAST || !(await verifies(key, line.signature.slice(8), at, checkpoint))) {
      throw new Wrong(`The cosignature of ${key.name} does not verify under its key: line, time or checkpoint was changed.`);
    }
    return at;
  };

  const spoken = (at) => {
    const date = new Date(Number(at) * 1000);
    return Number.isNaN(date.getTime()) ? `${at} seconds after 1970` : date.toISOString().replace(".000", "");
  };

  // By a log line of the policy, where it has any: else the log's key is somebody else's to give.
  const signedByItsLog = async (policy, checkpoint, mldsa) => {
    const { text, origin } = checkpoint;
    const keys = policy.logs.filter(({ name }) => name === origin);
    if (policy.logs.length && !keys.length) throw new Wrong(`The policy names no key of ${origin}.`);
    let found = !policy.logs.length;
    for (const key of keys.filter(({ kind }) => kind === PLAIN || mldsa)) {
      for (const line of linesOf(key, checkpoint)) {
        if (key.kind === MLDSA44) await cosignedAt(key, line, checkpoint);
        else if (!(await signed(key.raw, line.signature, utf8(text)))) throw new Wrong(`The signature of ${origin} does not verify.`);
        found = true;
      }
    }
    if (found) return;
    const unchecked = keys.some((key) => key.kind === MLDSA44 && linesOf(key, checkpoint).length);
    throw unchecked ? new Untold(`This browser cannot check the log's ML-DSA-44 signature. ${OFFLINE}`) : new Wrong("No log of the policy signed the checkpoint.");
  };

  // Name and time of each witness whose cosignature verifies; Wrong where one does not.
  const seenBy = async (policy, checkpoint) => {
    const [seen, mldsa] = [new Map(), await hasMldsa()];
    for (const [name, key] of policy.witnesses) {
      const lines = key.kind === COSIGNED || mldsa ? linesOf(key, checkpoint) : [];
      for (const line of lines) seen.set(name, await cosignedAt(key, line, checkpoint));
    }
    return seen;
  };

  const judged = async (text, checkpoint) => {
    const policy = await read(text);
    await signedByItsLog(policy, checkpoint, await hasMldsa());
    const seen = await seenBy(policy, checkpoint);
    const unchecked = [...policy.witnesses].filter(([name, key]) => !seen.has(name) && linesOf(key, checkpoint).length).map(([name]) => name);
    const said = [...seen].map(([name, at]) => `${name} at ${spoken(at)}`).join(", ") || "nobody";
    const aside = unchecked.length ? ` Not checked, as this browser has no ML-DSA-44: ${unchecked.join(", ")}. ${OFFLINE}` : "";
    const found = `Cosigned by ${said}; ${seen.size} of ${policy.witnesses.size} witnesses.${aside}`;
    if (policy.quorum === "none") throw new Unwitnessed(`The policy asks for no witness. ${found}`);
    if (met(policy, seen.keys())) return `The quorum ${policy.quorum} of the policy is met. ${found}`;
    if (met(policy, [...seen.keys(), ...unchecked])) throw new Untold(`The quorum ${policy.quorum} cannot be told. ${found}`);
    throw new Unwitnessed(`The quorum ${policy.quorum} of the policy is not met. ${found}`);
  };

  globalThis.witnessPolicy = { Unwitnessed, read, met, judged, seen: seenBy };
})();
