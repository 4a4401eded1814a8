// Time stamps of a third party (RFC 3161), checked by WebCrypto: CMS SignedData (RFC 5652) over a TSTInfo.
//
//   await timeStamps.time(token, message, authority)   // milliseconds since 1970; throws Wrong or Untold
//
// token       the authority's answer (TimeStampResp), its status "granted"
// message     the bytes that must be stamped: their SHA-256, SHA-384 or SHA-512 is the imprint
// authority   PEM with the root that it must lead to, and certificates between
//
// The signed attributes name the kind and digest of what is signed, and the signer's certificate. That one may stamp time and nothing
// else (critical), leads to a root in `authority`, and each certificate on the way is within its time at the time of the stamp. What is
// not understood is never taken for right: `Untold`.
(() => {
  "use strict";

  const { Wrong, Untold, hex, same, joined, fromBase64 } = globalThis.proofFormats;
  const { TAG, broken, only, explicit, inside, parts, oid, integer, bits, moment } = globalThis.strictDer;
  const HASHES = { "2.16.840.1.101.3.4.2.1": "SHA-256", "2.16.840.1.101.3.4.2.2": "SHA-384", "2.16.840.1.101.3.4.2.3": "SHA-512" };
  const RSA_WITH = { "1.2.840.113549.1.1.11": "SHA-256", "1.2.840.113549.1.1.12": "SHA-384", "1.2.840.113549.1.1.13": "SHA-512" };
  const ECDSA_WITH = { "1.2.840.10045.4.3.2": "SHA-256", "1.2.840.10045.4.3.3": "SHA-384", "1.2.840.10045.4.3.4": "SHA-512" };
  const CURVES = { "1.2.840.10045.3.1.7": ["P-256", 32], "1.3.132.0.34": ["P-384", 48] };
  const [RSA, PSS, MGF1, EC] = ["1.2.840.113549.1.1.1", "1.2.840.113549.1.1.10", "1.2.840.113549.1.1.8", "1.2.840.10045.2.1"];
  const [SIGNED_DATA, TST_INFO] = ["1.2.840.113549.1.7.2", "1.2.840.113549.1.9.16.1.4"];
  const [CONTENT_TYPE, MESSAGE_DIGEST] = ["1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4"];
  const [CERTIFICATE_V1, CERTIFICATE_V2] = ["1.2.840.113549.1.9.16.2.12", "1.2.840.113549.1.9.16.2.47"];
  const [BASIC, USAGE, PURPOSE, STAMPING] = ["2.5.29.19", "2.5.29.15", "2.5.29.37", "1.3.6.1.5.5.7.3.8"];
  const MOST_CERTIFICATES = 8;

  // --- algorithms ------------------------------------------------------------------------------

  const algorithm = (node) => {
    const [first, given, ...more] = inside(node, TAG.sequence);
    if (more.length) throw broken();
    return { name: oid(first), given };
  };

  const plain = ({ given }) => {
    if (given && (given.tag !== TAG.nothing || given.body.length)) throw broken();
  };

  const hashOf = (node) => {
    const found = algorithm(node);
    plain(found);
    if (!HASHES[found.name]) throw new Untold(`Its digest (${found.name}) is not one that is checked here.`);
    return HASHES[found.name];
  };

  const digest = async (name, bytes) => new Uint8Array(await crypto.subtle.digest(name, bytes));

  const pssOf = (given) => {
    const read = parts(given);
    const hash = hashOf(explicit(read.take(0xa0)));
    const mask = algorithm(explicit(read.take(0xa1)));
    const saltLength = parseInt(integer(explicit(read.take(0xa2))), 16);
    read.end();
    if (mask.name !== MGF1 || hashOf(mask.given) !== hash || saltLength > 64) throw new Untold("Its RSA-PSS is not one that is checked here.");
    return { hash, saltLength };
  };

  const fixed = (signature, size) => {
    const halves = inside(only(signature), TAG.sequence);
    if (halves.length !== 2) throw broken();
    return joined(...halves.map((half) => {
      integer(half);
      const raw = half.body[0] === 0 ? half.body.subarray(1) : half.body;
      if (half.body[0] & 0x80 || raw.length > size) throw new Wrong("Its signature is not one of its key.");
      return joined(new Uint8Array(size - raw.length), raw);
    }));
  };

  const scheme = ({ name, given }, kind, fallback) => {
    if (kind.name === RSA && name === PSS) {
      const { hash, saltLength } = pssOf(given);
      return { hash, how: { name: "RSA-PSS", hash }, using: { name: "RSA-PSS", saltLength } };
    }
    plain({ given });
    const hash = kind.name === RSA ? (name === RSA ? fallback : RSA_WITH[name]) : ECDSA_WITH[name];
    if (!hash) throw new Untold(`Its signature (${name}) is not one that is checked here.`);
    if (kind.name === RSA) return { hash, how: { name: "RSASSA-PKCS1-v1_5", hash }, using: { name: "RSASSA-PKCS1-v1_5" } };
    const [namedCurve, size] = CURVES[oid(kind.given)] ?? [];
    if (!namedCurve) throw new Untold("Its elliptic curve is not one that is checked here.");
    return { hash, size, how: { name: "ECDSA", namedCurve }, using: { name: "ECDSA", hash } };
  };

  // Whether this key signed; `fallback` is the digest where the algorithm names none.
  const signedBy = async (spki, named, message, signature, fallback) => {
    const kind = algorithm(inside(spki, TAG.sequence)[0]);
    if (![RSA, EC].includes(kind.name)) throw new Untold(`A key (${kind.name}) is not of a kind that is checked here.`);
    const { hash, size, how, using } = scheme(named, kind, fallback);
    if (fallback && hash !== fallback) throw new Untold("Its signature and its attributes have different digests.");
    let key = null;
    try {
      key = await crypto.subtle.importKey("spki", spki.whole, how, false, ["verify"]);
    } catch {
      throw new Untold("This browser cannot read a key of it.");
    }
    if (kind.name === RSA && key.algorithm.modulusLength < 2048) throw new Untold("An RSA key of it has less than 2048 bits.");
    return crypto.subtle.verify(using, key, size ? fixed(signature, size) : signature, message);
  };

  // --- certificates ----------------------------------------------------------------------------

  const whole = (node) => {
    const { unused, bytes } = bits(node);
    if (unused) throw broken();
    return bytes;
  };

  const readExtensions = (node) => {
    const found = new Map();
    for (const one of node ? inside(explicit(node), TAG.sequence) : []) {
      const read = parts(one);
      const [name, flag, value] = [oid(read.take(TAG.oid)), read.maybe(TAG.boolean), read.take(TAG.octets)];
      read.end();
      if (found.has(name) || (flag && hex(flag.body) !== "ff")) throw broken();
      found.set(name, { critical: Boolean(flag), value: value.body });
    }
    return found;
  };

  const certificate = (node) => {
    const outer = parts(node);
    const [tbs, named, signature] = [outer.take(TAG.sequence), outer.take(TAG.sequence), outer.take(TAG.bits)];
    outer.end();
    const read = parts(tbs);
    read.maybe(0xa0);
    const serial = integer(read.take(TAG.integer));
    const inner = read.take(TAG.sequence);
    const issuer = read.take(TAG.sequence).whole;
    const [from, to] = inside(read.take(TAG.sequence), TAG.sequence).map(moment);
    const [subject, spki] = [read.take(TAG.sequence).whole, read.take(TAG.sequence)];
    [0x81, 0x82].forEach(read.maybe);
    const extensions = readExtensions(read.maybe(0xa3));
    read.end();
    if (!same(inner.whole, named.whole) || to === undefined) throw broken();
    return { whole: node.whole, tbs: tbs.whole, named: algorithm(named), signature: whole(signature), serial, issuer, subject, from, to, spki, extensions };
  };

  const readAuthority = (pem) => {
    const blocks = [...pem.matchAll(/-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----/g)];
    if (!blocks.length || blocks.length > MOST_CERTIFICATES) throw new Untold("The authority for time stamps is not a PEM file of certificates.");
    return blocks.map(([, text]) => {
      try {
        return certificate(only(fromBase64(text.replace(/\s/g, ""), "The authority's certificate", Untold)));
      } catch (error) {
        throw new Untold(`A certificate of the authority for time stamps cannot be read: ${error.message}`);
      }
    });
  };

  const within = (one, at) => {
    if (at < one.from || at > one.to) throw new Wrong("A certificate of it was not valid at the time that it says.");
    const unknown = [...one.extensions].find(([name, { critical }]) => critical && ![BASIC, USAGE, PURPOSE].includes(name));
    if (unknown) throw new Untold(`A certificate of it has a critical extension (${unknown[0]}) that is not understood here.`);
  };

  const uses = (one, mask) => {
    const said = one.extensions.get(USAGE);
    return !said || Boolean((bits(only(said.value)).bytes[0] ?? 0) & mask);
  };

  const mayStamp = (one) => {
    const said = one.extensions.get(PURPOSE);
    const purposes = said ? inside(only(said.value), TAG.sequence).map(oid) : [];
    if (!said?.critical || !purposes.includes(STAMPING) || !uses(one, 0xc0)) {
      throw new Wrong("Its signer's certificate is not one for stamping time (critical).");
    }
    if (purposes.length > 1) throw new Untold("Its signer's certificate is for more than stamping time.");
  };

  const maySign = (one, below) => {
    const said = one.extensions.get(BASIC);
    const [flag, depth] = said ? inside(only(said.value), TAG.sequence) : [];
    const most = depth ? parseInt(integer(depth), 16) : Infinity;
    if (!flag || flag.tag !== TAG.boolean || hex(flag.body) !== "ff" || !uses(one, 0x04) || below > most) {
      throw new Wrong("A certificate of it is signed by one that may not sign certificates.");
    }
  };

  // Which of these, all of the right name, signed it: an authority may have had other roots, with keys of another kind.
  const signerOf = async (current, above) => {
    let untold = null;
    for (const one of above) {
      try {
        if (await signedBy(one.spki, current.named, current.tbs, current.signature)) return { next: one };
      } catch (error) {
        if (!(error instanceof Untold)) throw error;
        untold = error;
      }
    }
    return { untold };
  };

  // To a root that is given: one that names itself as its issuer.
  const leads = async (signer, others, trusted, at) => {
    within(signer, at);
    let current = signer;
    for (let below = 0; below < MOST_CERTIFICATES; below += 1) {
      const above = [...trusted, ...others].filter(({ subject }) => same(subject, current.issuer));
      if (!above.length) throw new Untold("It leads to another authority than the one that is given.");
      const { next, untold } = await signerOf(current, above);
      if (!next && untold) throw untold;
      if (!next) throw new Wrong("A certificate of it is not signed by the authority that it names.");
      within(next, at);
      maySign(next, below);
      if (same(next.subject, next.issuer) && trusted.includes(next)) return;
      current = next;
    }
    throw new Untold("Its certificates lead to no root that is given.");
  };

  // --- the token -------------------------------------------------------------------------------

  const readSigner = (node) => {
    const read = parts(node);
    if (integer(read.take(TAG.integer)) !== "01") throw new Untold("Its signer is not named by issuer and number.");
    const sid = parts(read.take(TAG.sequence));
    const [issuer, serial] = [sid.take(TAG.sequence).whole, integer(sid.take(TAG.integer))];
    sid.end();
    const [hash, attributes] = [hashOf(read.take(TAG.sequence)), read.take(0xa0)];
    const [named, signature] = [algorithm(read.take(TAG.sequence)), read.take(TAG.octets).body];
    read.maybe(0xa1);
    read.end();
    const said = new Map();
    for (const one of inside(attributes, 0xa0)) {
      const [name, values, ...more] = inside(one, TAG.sequence);
      const found = inside(values, TAG.set);
      if (more.length || found.length !== 1 || said.has(oid(name))) throw broken();
      said.set(oid(name), found[0]);
    }
    return { issuer, serial, hash, said, named, signature, signed: joined([TAG.set], attributes.whole.subarray(1)) };
  };

  const readToken = (token) => {
    const reply = parts(only(token));
    const [status] = inside(reply.take(TAG.sequence), TAG.sequence);
    if (integer(status) !== "00") throw new Wrong("The authority did not grant it.");
    const outer = parts(reply.take(TAG.sequence));
    reply.end();
    if (oid(outer.take(TAG.oid)) !== SIGNED_DATA) throw new Wrong("It is not signed data.");
    const read = parts(explicit(outer.take(0xa0)));
    outer.end();
    if (integer(read.take(TAG.integer)) !== "03") throw new Untold("Its signed data is of a version that is not read here.");
    const hashes = inside(read.take(TAG.set), TAG.set).map(hashOf);
    const held = parts(read.take(TAG.sequence));
    if (oid(held.take(TAG.oid)) !== TST_INFO) throw new Wrong("It holds something else than a time.");
    const content = explicit(held.take(0xa0));
    held.end();
    if (content.tag !== TAG.octets) throw broken();
    const certificates = read.maybe(0xa0);
    read.maybe(0xa1);
    const signers = inside(read.take(TAG.set), TAG.set);
    read.end();
    if (signers.length !== 1) throw new Wrong("It has not exactly one signer.");
    const found = certificates ? inside(certificates, 0xa0) : [];
    if (found.length > MOST_CERTIFICATES) throw new Untold("It has more certificates than are read here.");
    return { hashes, content: content.body, signer: readSigner(signers[0]), certificates: found.map(certificate) };
  };

  const readTime = (content) => {
    const read = parts(only(content));
    if (integer(read.take(TAG.integer)) !== "01") throw new Untold("Its time is of a version that is not read here.");
    read.take(TAG.oid); // under what policy of the authority
    const imprint = parts(read.take(TAG.sequence));
    const [hash, value] = [hashOf(imprint.take(TAG.sequence)), imprint.take(TAG.octets).body];
    imprint.end();
    integer(read.take(TAG.integer));
    const at = moment(read.take(TAG.time));
    [TAG.sequence, TAG.boolean, TAG.integer, 0xa0].forEach(read.maybe); // accuracy, ordering, nonce, name
    if (read.maybe(0xa1)) throw new Untold("Its time has extensions, which are not understood here.");
    read.end();
    return { hash, value, at };
  };

  // The signed attributes name this very certificate (RFC 5035; RFC 2634 for SHA-1).
  const namesIt = async (said, one) => {
    const named = [[CERTIFICATE_V1, "SHA-1"], [CERTIFICATE_V2, "SHA-256"]].filter(([name]) => said.has(name));
    if (!named.length) throw new Untold("It does not say which certificate signed it.");
    for (const [name, usual] of named) {
      const read = parts(inside(inside(said.get(name), TAG.sequence)[0], TAG.sequence)[0]);
      const other = name === CERTIFICATE_V2 ? read.maybe(TAG.sequence) : null;
      const value = read.take(TAG.octets).body;
      if (!same(value, await digest(other ? hashOf(other) : usual, one.whole))) throw new Wrong("It names another certificate than its signer's.");
    }
  };

  const time = async (token, message, authority) => {
    if (!authority) throw new Untold("No certificate of its authority is given.");
    const trusted = readAuthority(authority);
    const { hashes, content, signer, certificates } = readToken(token);
    const { hash, value, at } = readTime(content);
    if (!same(value, await digest(hash, message))) throw new Wrong("It is over other bytes.");
    const { said } = signer;
    if (!said.has(CONTENT_TYPE) || oid(said.get(CONTENT_TYPE)) !== TST_INFO) throw new Wrong("Its signature is not one over a time.");
    const summed = said.get(MESSAGE_DIGEST);
    if (summed?.tag !== TAG.octets || !same(summed.body, await digest(signer.hash, content)) || !hashes.includes(signer.hash)) {
      throw new Wrong("Its time has another digest than is signed.");
    }
    const ours = certificates.filter(({ issuer, serial }) => serial === signer.serial && same(issuer, signer.issuer));
    if (ours.length !== 1) throw new Untold("It does not bring its signer's certificate.");
    if (!(await signedBy(ours[0].spki, signer.named, signer.signed, signer.signature, signer.hash))) throw new Wrong("Its signature does not verify.");
    mayStamp(ours[0]);
    await namesIt(said, ours[0]);
    await leads(ours[0], certificates, trusted, at);
    return at;
  };

  globalThis.timeStamps = { time };
})();
