// DER (X.690), strict and bounded, for what a time stamp consists of. What is not DER is `Wrong`; what is BER, or of a kind that is
// not read here, is `Untold`. Nothing is read beyond the element that holds it, and nothing may stand behind the last one.
(() => {
  "use strict";

  const { Wrong, Untold, hex } = globalThis.proofFormats;
  const [MOST_BYTES, MOST_ELEMENTS] = [65_536, 256];
  const TAG = { boolean: 0x01, integer: 0x02, bits: 0x03, octets: 0x04, nothing: 0x05, oid: 0x06, utc: 0x17, time: 0x18, sequence: 0x30, set: 0x31 };

  const broken = () => new Wrong("It is not DER: a length, a tag or an order in it is wrong, or something stands behind its end.");

  const element = (bytes, at) => {
    if (at + 2 > bytes.length) throw broken();
    const tag = bytes[at];
    let [length, from] = [bytes[at + 1], at + 2];
    if ((tag & 0x1f) === 0x1f) throw new Untold("It has a tag of more than one byte, which is not read here.");
    if (length === 0x80) throw new Untold("It is in BER, of which only DER is read here.");
    if (length > 0x80) {
      const count = length - 0x80;
      if (count > 3 || from + count > bytes.length) throw broken();
      length = bytes.subarray(from, from + count).reduce((sum, byte) => sum * 256 + byte, 0);
      from += count;
      if (length < 0x80 || length < 256 ** (count - 1)) throw broken(); // a shorter form is there
    }
    if (from + length > bytes.length) throw broken();
    return { tag, body: bytes.subarray(from, from + length), whole: bytes.subarray(at, from + length) };
  };

  const all = (bytes) => {
    const found = [];
    for (let at = 0; at < bytes.length; at += found.at(-1).whole.length) {
      if (found.length === MOST_ELEMENTS) throw new Untold("It has more parts than are read here.");
      found.push(element(bytes, at));
    }
    return found;
  };

  const inside = (node, tag) => {
    if (node?.tag !== tag) throw broken();
    return all(node.body);
  };

  // The one element of these bytes.
  const only = (bytes) => {
    if (bytes.length > MOST_BYTES) throw new Untold("It is longer than is read here.");
    const one = element(bytes, 0);
    if (one.whole.length !== bytes.length) throw broken();
    return one;
  };

  const explicit = (node) => only(node.body);

  // The parts of a sequence, in turn: `take` one that must be there, `maybe` one that may, and `end` where nothing may follow.
  const parts = (node, tag = TAG.sequence) => {
    const left = inside(node, tag);
    const maybe = (wanted) => (left[0]?.tag === wanted ? left.shift() : null);
    const take = (wanted) => {
      const one = left.shift();
      if (!one || (wanted !== undefined && one.tag !== wanted)) throw broken();
      return one;
    };
    const end = () => {
      if (left.length) throw broken();
    };
    return { maybe, take, end };
  };

  const oid = (node) => {
    if (node?.tag !== TAG.oid || !node.body.length || node.body.length > 32 || node.body.at(-1) & 0x80) throw broken();
    const numbers = [];
    let number = 0n;
    for (const byte of node.body) {
      if (number === 0n && byte === 0x80) throw broken();
      number = (number << 7n) | BigInt(byte & 0x7f);
      if (byte & 0x80) continue;
      numbers.push(number);
      number = 0n;
    }
    const top = numbers[0] < 80n ? numbers[0] / 40n : 2n;
    return [top, numbers[0] - top * 40n, ...numbers.slice(1)].join(".");
  };

  // A whole number's bytes as hexadecimal: what two of them are compared by.
  const integer = (node) => {
    const { tag, body } = node ?? {};
    if (tag !== TAG.integer || !body.length) throw broken();
    if (body.length > 1 && ((body[0] === 0 && body[1] < 0x80) || (body[0] === 0xff && body[1] >= 0x80))) throw broken();
    return hex(body);
  };

  const bits = (node) => {
    if (node?.tag !== TAG.bits || !node.body.length || node.body[0] > 7) throw broken();
    return { unused: node.body[0], bytes: node.body.subarray(1) };
  };

  // In milliseconds since 1970, what is finer left out.
  const moment = (node) => {
    const said = new TextDecoder("latin1").decode(node.body);
    const long = node.tag === TAG.utc && /^\d{12}Z$/.test(said) ? (said < "50" ? "20" : "19") + said : said;
    const found = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(?:\.(\d{0,8}[1-9]))?Z$/.exec(long);
    if (!found || ![TAG.utc, TAG.time].includes(node.tag)) throw broken();
    const [year, month, day, hour, minute, second] = found.slice(1, 7);
    const iso = `${year}-${month}-${day}T${hour}:${minute}:${second}`;
    const at = Date.parse(`${iso}.${(found[7] ?? "").padEnd(3, "0").slice(0, 3)}Z`);
    if (Number.isNaN(at) || !new Date(at).toISOString().startsWith(iso)) throw broken();
    return at;
  };

  globalThis.strictDer = { TAG, broken, only, explicit, inside, parts, oid, integer, bits, moment };
})();
