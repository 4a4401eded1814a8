// Bytes, hashes, signatures and the C2SP formats, for the check in the browser: WebCrypto and nothing else. A second spelling of
// anything is refused, as is a key of small order. `Wrong`: the evidence contradicts itself. `Untold`: something needed is not here.
(() => {
  "use strict";

  const SPKI = "302a300506032b6570032100"; // what stands before a raw Ed25519 key in a PEM file (RFC 8410)
  const SMALL_ORDER = new Set([ // with the sign bit cleared; other spellings of these are not canonical
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
  ]);

  class Wrong extends Error {} // the evidence contradicts itself
  class Untold extends Error {} // something needed is not here, or is no key at all

  // --- bytes -----------------------------------------------------------------------------------

  const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const utf8 = (string) => new TextEncoder().encode(string);
  const same = (one, other) => one.length === other.length && one.every((byte, at) => byte === other[at]);

  const joined = (...parts) => {
    const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      whole.set(part, at);
      at += part.length;
    }
    return whole;
  };

  const textOf = (bytes, what) => {
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      throw new Wrong(`${what} is not text in UTF-8.`);
    }
  };

  const toBase64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));

  const fromBase64 = (string, what, Fault = Wrong) => {
    try {
      const bytes = Uint8Array.from(atob(string), (letter) => letter.charCodeAt(0));
      if (bytes.length && toBase64(bytes) === string) return bytes;
    } catch {
      // said below
    }
    throw new Fault(`${what} is not canonical base64.`);
  };

  const wholeNumber = (string, what) => {
    const number = /^(0|[1-9][0-9]*)$/.test(string) ? Number(string) : NaN;
    if (!Number.isSafeInteger(number)) throw new Wrong(`${what} is not a whole number.`);
    return number;
  };

  // --- hashes and signatures -------------------------------------------------------------------

  const sha256 = async (...parts) => new Uint8Array(await crypto.subtle.digest("SHA-256", joined(...parts)));
  const hashLeaf = (entry) => sha256([0], entry);
  const hashNode = (left, right) => sha256([1], left, right);

  // The root that a leaf hash at this index leads to; Wrong when the path has not the length that index and size demand.
  const rootOf = async (leafHash, index, size, path) => {
    const refused = new Wrong(`The path is not one of entry ${index} in a tree of ${size}.`);
    if (!(index >= 0 && index < size)) throw refused;
    let [seen, at, last] = [leafHash, index, size - 1];
    for (const sibling of path) {
      if (last === 0) throw refused;
      if (at % 2 === 1 || at === last) {
        seen = await hashNode(sibling, seen);
        while (at !== 0 && at % 2 === 0) [at, last] = [at / 2, Math.floor(last / 2)]; // rows without a sibling
      } else {
        seen = await hashNode(seen, sibling);
      }
      [at, last] = [Math.floor(at / 2), Math.floor(last / 2)];
    }
    if (last !== 0) throw refused;
    return seen;
  };

  // Wrong unless the tree of `size` begins with the tree of `old` (RFC 9162, 2.1.4.2).
  const continued = async (old, size, path, oldRoot, root) => {
    const refused = new Wrong(`The tree of ${size} entries does not begin with the tree of ${old} that is given.`);
    if (!(old > 0 && old <= size)) throw refused;
    if (old === size) {
      if (path.length || !same(oldRoot, root)) throw refused;
      return;
    }
    let [at, last] = [old - 1, size - 1];
    while (at % 2 === 1) [at, last] = [Math.floor(at / 2), Math.floor(last / 2)];
    const [first, ...rest] = at ? path : [oldRoot, ...path]; // a whole subtree of the new tree stands for itself
    if (!first) throw refused;
    let [seenOld, seen] = [first, first];
    for (const sibling of rest) {
      if (last === 0) throw refused;
      if (at % 2 === 1 || at === last) {
        [seenOld, seen] = [await hashNode(sibling, seenOld), await hashNode(sibling, seen)];
        while (at !== 0 && at % 2 === 0) [at, last] = [at / 2, Math.floor(last / 2)];
      } else {
        seen = await hashNode(seen, sibling);
      }
      [at, last] = [Math.floor(at / 2), Math.floor(last / 2)];
    }
    if (last !== 0 || !same(seenOld, oldRoot) || !same(seen, root)) throw refused;
  };

  const refuseWeak = (raw, what) => {
    const plain = Uint8Array.from(raw);
    plain[31] &= 0x7f;
    const beyond = plain[31] === 0x7f && plain.slice(1, 31).every((byte) => byte === 0xff) && plain[0] >= 0xed;
    if (beyond || SMALL_ORDER.has(hex(plain))) throw new Wrong(`${what} is a weak key: it would accept a forged signature.`);
  };

  const signed = async (raw, signature, message) => {
    const key = await crypto.subtle.importKey("raw", raw, { name: "Ed25519" }, false, ["verify"]);
    return crypto.subtle.verify({ name: "Ed25519" }, key, signature, message);
  };

  // What this browser lacks, as a sentence; nothing when it has all that is needed.
  const lacking = async () => {
    if (!globalThis.crypto?.subtle) {
      return "This browser gives pages no WebCrypto here. It does over https, and for an address on the same machine.";
    }
    try {
      const base = utf8("\x58" + "\x66".repeat(31)); // the curve's base point: a key that is surely valid
      await crypto.subtle.importKey("raw", base, { name: "Ed25519" }, false, ["verify"]);
      return "";
    } catch {
      return "This browser's WebCrypto has no Ed25519. A newer browser has it; OpenSSL does the same check.";
    }
  };

  // --- formats ---------------------------------------------------------------------------------

  const readPem = (string, what) => {
    const found = /^-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+?)\s*-----END PUBLIC KEY-----\s*$/.exec(string.trim());
    const der = found ? fromBase64(found[1].replace(/\s/g, ""), what, Untold) : [];
    if (der.length !== 44 || hex(der.slice(0, 12)) !== SPKI) throw new Untold(`${what} is not an Ed25519 public key in PEM.`);
    refuseWeak(der.slice(12), what);
    return der.slice(12);
  };

  const noteKeyId = async (name, raw, type = 1) => (await sha256(utf8(name), [0x0a, type], raw)).slice(0, 4);

  // The log's key: a vkey, which names its log, or a PEM, which is taken for the log that the checkpoint names.
  const readLogKey = async (string, origin) => {
    if (string.includes("-----BEGIN")) return { name: origin, raw: readPem(string, "The log's key") };
    const parts = string.trim().split("+");
    const material = parts.length > 2 ? fromBase64(parts.slice(2).join("+"), "The log's key", Untold) : [];
    if (material.length !== 33 || material[0] !== 1) throw new Untold("The log's key is neither an Ed25519 vkey nor PEM.");
    const [name, raw] = [parts[0], material.slice(1)];
    if (hex(await noteKeyId(name, raw)) !== parts[1]) throw new Untold("The log's key has another id than it names: it was not copied whole.");
    refuseWeak(raw, "The log's key");
    return { name, raw };
  };

  const readProof = (bytes) => {
    const string = textOf(bytes, "bundle.tlog-proof");
    const end = string.indexOf("\n\n");
    const [header, ...lines] = string.slice(0, Math.max(end, 0)).split("\n");
    if (lines[0]?.startsWith("extra ")) lines.shift(); // covered by no signature, so it says nothing
    if (header !== "c2sp.org/tlog-proof@v1" || !lines[0]?.startsWith("index ")) {
      throw new Wrong("bundle.tlog-proof does not begin as a receipt with an index.");
    }
    const path = lines.slice(1).map((line, at) => fromBase64(line, `Hash ${at + 1} of the path`));
    if (path.some((hash) => hash.length !== 32)) throw new Wrong("A hash of the path is not of 32 bytes.");
    return { index: wholeNumber(lines[0].slice(6), "The index"), path, note: string.slice(end + 2) };
  };

  const readCheckpoint = (note) => {
    const end = note.lastIndexOf("\n\n");
    const text = note.slice(0, end + 1);
    const [origin, size, root] = text.split("\n");
    if (end < 0 || !note.endsWith("\n") || !root) throw new Wrong("The checkpoint is not a signed note of three lines.");
    const signatures = note.slice(end + 2, -1).split("\n").map((line) => {
      const [dash, name, encoded, more] = line.split(" ");
      if (dash !== "—" || !name || !encoded || more !== undefined) throw new Wrong("The checkpoint has a broken signature line.");
      const blob = fromBase64(encoded, "A signature line");
      return { name, id: hex(blob.slice(0, 4)), signature: blob.slice(4) };
    });
    return { text, origin, size: wholeNumber(size, "The tree size"), root: fromBase64(root, "The root"), signatures };
  };

  globalThis.proofFormats = {
    Wrong, Untold, hex, utf8, same, joined, textOf, toBase64, fromBase64, wholeNumber, sha256, hashLeaf, rootOf, continued, refuseWeak,
    signed, lacking, readPem, noteKeyId, readLogKey, readProof, readCheckpoint,
  };
})();
