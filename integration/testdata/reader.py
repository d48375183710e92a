#!/usr/bin/python3
"""Decrypts a kmsfs volume, format version 1, into a new directory.

    reader.py CIPHERDIR CMKFILE OUTDIR

Written from docs/format.md alone, to show that the page is enough: it shares no line and no library with kmsfs. Comments give sections of that
page. It stops at the first thing that does not authenticate.
"""
import base64
import hashlib
import hmac
import os
import stat
import struct
import sys

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.cmac import CMAC

ROOT_SEGMENTS = 3648


class Bad(Exception):
    pass


def check(ok, what):
    if not ok:
        raise Bad(what)


# Primitives

def extract(salt, ikm):
    return hmac.new(salt or bytes(32), ikm, hashlib.sha256).digest()


def expand(prk, info, n):
    out, block, i = b"", b"", 1
    while len(out) < n:
        block = hmac.new(prk, block + info + bytes([i]), hashlib.sha256).digest()
        out, i = out + block, i + 1
    return out[:n]


def unb64(s):
    check("=" not in s, "base64 padding")
    raw = base64.b64decode(s + "=" * (-len(s) % 4), altchars=b"-_", validate=True)
    check(base64.urlsafe_b64encode(raw).rstrip(b"=").decode() == s, "base64 spelling")
    return raw


def cmac(key, message):
    c = CMAC(algorithms.AES(key))
    c.update(message)
    return c.finalize()


def xor(a, b):
    return bytes(x ^ y for x, y in zip(a, b))


def double(block):
    n = int.from_bytes(block, "big") << 1
    return ((n ^ 0x87 if n >> 128 else n) & (1 << 128) - 1).to_bytes(16, "big")


def siv_open(key, ad, sealed):
    """AES-SIV with one associated-data string, which may be empty: RFC 5297. Libraries differ over empty plaintexts."""
    check(len(sealed) >= 16, "too short for a synthetic IV")
    iv, text = sealed[:16], sealed[16:]
    counter = int.from_bytes(iv, "big") & ~(1 << 63 | 1 << 31)
    plain = Cipher(algorithms.AES(key[32:]), modes.CTR(counter.to_bytes(16, "big"))).decryptor().update(text)
    d = xor(double(cmac(key[:32], bytes(16))), cmac(key[:32], ad))
    if len(plain) >= 16:
        t = plain[:-16] + xor(plain[-16:], d)
    else:
        t = xor(double(d), (plain + b"\x80").ljust(16, b"\0"))
    check(hmac.compare_digest(cmac(key[:32], t), iv), "synthetic IV")
    return plain


class GCM:
    """GCM over SM4, which not every library has: NIST SP 800-38D."""

    def __init__(self, key):
        self.key = key
        e = Cipher(algorithms.SM4(key), modes.ECB()).encryptor()
        self.h = int.from_bytes(e.update(bytes(16)), "big")

    def mul(self, x):
        z, v = 0, self.h
        for i in range(127, -1, -1):
            if x >> i & 1:
                z ^= v
            v = v >> 1 ^ (0xE1 << 120 if v & 1 else 0)
        return z

    def decrypt(self, nonce, sealed, aad):
        text, tag = sealed[:-16], sealed[-16:]
        y = 0
        for part in (aad, text):
            for i in range(0, len(part), 16):
                y = self.mul(y ^ int.from_bytes(part[i:i + 16].ljust(16, b"\0"), "big"))
        y = self.mul(y ^ (len(aad) * 8 << 64 | len(text) * 8))
        ctr = Cipher(algorithms.SM4(self.key), modes.CTR(nonce + b"\0\0\0\1")).encryptor()
        check(hmac.compare_digest(ctr.update(y.to_bytes(16, "big")), tag), "tag")
        return ctr.update(text)


# Section 4: headers

class Header:
    def __init__(self, raw):
        check(len(raw) >= 56 and raw[:8] == b"kmsfs\0\r\n", "magic")
        self.version, reader, self.kind, self.algorithm, log, reserved = raw[8:14]
        (self.flags, self.H, self.U) = struct.unpack(">HII", raw[14:24])
        check(reader == 1 and self.version >= 1, "version")
        check(self.kind in (1, 2) and self.algorithm in (1, 2, 3) and 12 <= log <= 16 and reserved == 0, "fixed part")
        self.s = 1 << log
        known = self.flags & 0xFF if self.version > 1 else self.flags  # section 4.6
        check(known in ((0,) if self.kind == 1 else (0, 1)), "flags")
        self.plain_names = known == 1
        check(self.H % 512 == 0 and 512 <= self.H <= 65024 and len(raw) >= self.H and 120 <= self.U <= self.H, "lengths")
        self.raw, self.id, self.key_id = raw[:self.H], raw[24:40], raw[40:56]
        check(not any(raw[self.U:self.H]), "padding")
        lists, self.at = raw[56:self.U - 64], 0

        def take(n):
            check(self.at + n <= len(lists), "list")
            self.at += n
            return lists[self.at - n:self.at]

        def u16():
            return struct.unpack(">H", take(2))[0]

        length = u16()
        check(2 <= length <= 8192, "context length")
        entries, previous = u16(), None
        check(entries <= 64, "context entries")
        for _ in range(entries):
            key = take(u16())
            take(u16()).decode()
            check(key and (previous is None or previous < key), "context order")
            previous = key
        check(self.at == 2 + length, "context")
        self.context = lists[:self.at]
        self.edks = []
        for _ in range(take(1)[0]):
            cmk = take(u16()).decode()
            self.edks.append((cmk, take(u16())))
        check(1 <= len(self.edks) <= 16 and len({c for c, _ in self.edks}) == len(self.edks), "EDKs")
        check(self.version > 1 or self.at == len(lists), "bytes after the EDKs")

    def verify(self, dek):
        check(len(dek) == (32 if self.algorithm == 1 else 16), "key size")
        check(hmac.compare_digest(expand(extract(b"", dek), b"kmsfs v1 data key id", 16), self.key_id), "data key ID")
        prk = extract(self.id, dek)
        u = self.U
        check(hmac.compare_digest(expand(prk, b"kmsfs v1 commitment", 32), self.raw[u - 64:u - 32]), "commitment")
        mac = hmac.new(expand(prk, b"kmsfs v1 header", 32), self.raw[:u - 32], hashlib.sha256).digest()
        check(hmac.compare_digest(mac, self.raw[u - 32:u]), "MAC")
        return prk

    def unwrap(self, cmk_file):  # section 4.5
        word, cmk_id, key = open(cmk_file).read().split()
        check(word == "kmsfs-local-cmk-1" and len(cmk_id) == 32 and len(key) == 64, "CMK file")
        for cmk, wrapped in self.edks:
            if cmk == "local:" + cmk_id:
                k = expand(extract(wrapped[:32], bytes.fromhex(key)), b"kmsfs local v1 wrap", 32)
                aad = b"kmsfs local v1" + bytes.fromhex(cmk_id) + hashlib.sha256(self.context).digest()
                return AESGCM(k).decrypt(bytes(12), wrapped[32:], aad)
        raise Bad("no EDK is from this CMK")


# Sections 5 and 6: content

class Content:
    def __init__(self, fd, header, prk):
        self.fd, self.h, self.s, self.S = fd, header, header.s, header.s + 40
        self.P = header.H + 512
        self.key = expand(prk, b"kmsfs v1 content", 32)
        self.aeads, self.maps = {}, {}
        self.size = os.fstat(fd).st_size
        self.first, self.to, self.root = 0, 0, None
        root = os.pread(fd, 512, header.H)
        check(len(root) == 512, "hole root")
        if any(root):
            plain = self.open(root, 0, 2)
            self.first, self.to = struct.unpack(">QQ", plain[:16])
            check(self.first == self.to == 0 or 1 <= self.first < self.to <= 1 << 34, "hole root range")
            self.root = plain[16:]

    def open(self, slot, index, kind):
        prefix, nonce = slot[:12], slot[12:24]
        aead = self.aeads.get(prefix)
        if aead is None:
            n = 32 if self.h.algorithm == 1 else 16
            key = expand(self.key, b"kmsfs v1 segment" + prefix, n)
            aead = self.aeads[prefix] = GCM(key) if self.h.algorithm == 3 else AESGCM(key)
        return aead.decrypt(nonce, slot[24:], struct.pack(">QB", index, kind))

    def m(self, i):
        return 0 if i < ROOT_SEGMENTS else 1 + (i - ROOT_SEGMENTS) // (8 * self.s)

    def offset(self, i):
        return self.P + (i + self.m(i)) * self.S

    def segments(self):  # section 5.4, the inverse of sealed(p)
        last = (self.size - self.P - 1) // self.S
        i = last
        if last >= ROOT_SEGMENTS:
            group, within = divmod(last - ROOT_SEGMENTS, 8 * self.s + 1)
            check(within > 0, "the file ends in a map")
            i = ROOT_SEGMENTS + group * 8 * self.s + within - 1
        check(self.size > self.offset(i) + 40, "impossible size")
        return i + 1

    def permitted(self, i):
        if self.root is None:
            return False
        k = self.m(i)
        if k == 0:
            return self.root[i // 8] >> i % 8 & 1 == 1
        if k not in self.maps:
            f = ROOT_SEGMENTS + (k - 1) * 8 * self.s
            slot = os.pread(self.fd, self.S, self.offset(f) - self.S)
            self.maps = {k: self.open(slot, k, 2) if any(slot) else None}
        bits, i = self.maps[k], i - ROOT_SEGMENTS - (k - 1) * 8 * self.s
        if bits is None:
            return self.first <= k < self.to
        return bits[i // 8] >> i % 8 & 1 == 1

    def copy_to(self, out):
        n = self.segments()
        i, size = 0, 0
        while i < n:
            slot = os.pread(self.fd, min(self.S, self.size - self.offset(i)), self.offset(i))
            if not any(slot):
                check(i < n - 1 and self.permitted(i), "segment %d is zeroed" % i)
            else:
                plain = self.open(slot, i, int(i == n - 1))
                os.pwrite(out, plain, i * self.s)
                size = i * self.s + len(plain)
            i += 1
        os.ftruncate(out, size)


# Sections 7 to 9: the tree

class Volume:
    def __init__(self, root, cmk_file):
        self.root = root
        for name in ("volume", "volume.copy"):
            try:
                self.h = Header(open(os.path.join(root, ".kmsfs", name), "rb").read())
                break
            except (Bad, OSError) as e:
                failure = e
        else:
            raise failure
        check(self.h.kind == 2, "not a volume header")
        self.cmk_file = cmk_file
        self.deks = {self.h.key_id: self.h.unwrap(cmk_file)}  # by data key ID
        prk = self.h.verify(self.deks[self.h.key_id])
        self.names, self.links, self.xattrs, self.directories = (
            expand(prk, b"kmsfs v1 " + use, 64) for use in (b"names", b"links", b"xattrs", b"directories"))
        self.inodes = {}

    def directory_id(self, path):
        if path == self.root:
            return self.h.id
        for link in ("kmsfs.dir", "kmsfs.dir.copy"):
            try:
                return siv_open(self.directories, b"", unb64(os.readlink(os.path.join(path, link))))
            except (OSError, Bad):
                pass
        raise Bad("directory ID of " + path)

    def name(self, path, directory, disk):
        """Returns the plaintext name of an entry as bytes, None for what is not an entry."""
        if path == self.root and disk == ".kmsfs":
            return None
        if self.h.plain_names:
            return os.fsencode(disk)
        if path == self.root and disk == "lost+found":
            return None
        if disk.startswith("kmsfs.long."):
            h = disk[len("kmsfs.long."):]
            for side in ("kmsfs.name.", "kmsfs.copy."):
                try:
                    c = unb64(os.readlink(os.path.join(path, side + h)))
                except OSError:
                    continue
                if hashlib.sha256(c).digest() == unb64(h):
                    return siv_open(self.names, directory, c)
            raise Bad("long name " + disk)
        if disk.startswith("kmsfs."):
            return None
        return siv_open(self.names, directory, unb64(disk))

    def target(self, stored):
        if stored.startswith("kmsfs.link.") and len(stored) == 43:
            blob = open(os.path.join(self.root, ".kmsfs", "links", stored[11:]), "rb").read()
        else:
            blob = unb64(stored)
        return siv_open(self.links, blob[:16], blob[16:])

    def copy_xattrs(self, path, out):
        for stored in os.listxattr(path, follow_symlinks=False):
            for prefix in ("user.kmsfs.", "trusted.kmsfs."):
                if not stored.startswith(prefix):
                    continue
                e, value = stored[len(prefix):], os.getxattr(path, stored, follow_symlinks=False)
                r, sealed = value[:16], value[16:]
                if e.startswith("#"):
                    v = siv_open(self.xattrs, b"value" + r, sealed)
                    full, v = v[1:1 + v[0]], v[1 + v[0]:]
                else:
                    full = siv_open(self.xattrs, b"name", unb64(e))
                    v = siv_open(self.xattrs, b"value" + r + full, sealed)
                os.setxattr(out, full, v, follow_symlinks=False)

    def copy_file(self, path, out):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        to = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            if os.fstat(fd).st_size:
                h = Header(os.pread(fd, self.h.H, 0))
                v = self.h
                check((h.kind, h.algorithm, h.s, h.H, h.context) == (1, v.algorithm, v.s, v.H, v.context), "foreign file")
                dek = self.deks.get(h.key_id) or h.unwrap(self.cmk_file)
                prk = h.verify(dek)
                self.deks[h.key_id] = dek
                Content(fd, h, prk).copy_to(to)
        finally:
            os.close(fd)
            os.close(to)

    def copy_tree(self, path, out):
        directory = None if self.h.plain_names else self.directory_id(path)
        for disk in os.listdir(path):
            sealed = os.path.join(path, disk)
            name = self.name(path, directory, disk)
            if name is None:
                continue
            check(name and b"/" not in name and name not in (b".", b".."), "name")
            self.copy_entry(sealed, os.path.join(out, os.fsdecode(name)))

    def copy_entry(self, sealed, to):
        st = os.lstat(sealed)
        if st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode):
            first = self.inodes.setdefault((st.st_dev, st.st_ino), to)
            if first != to:
                os.link(first, to, follow_symlinks=False)
                return
        if stat.S_ISDIR(st.st_mode):
            os.mkdir(to)
            self.copy_tree(sealed, to)
        elif stat.S_ISLNK(st.st_mode):
            os.symlink(self.target(os.readlink(sealed)), os.fsencode(to))
        elif stat.S_ISREG(st.st_mode):
            self.copy_file(sealed, to)
        else:
            os.mknod(to, st.st_mode, st.st_rdev)
        self.copy_xattrs(sealed, to)
        if not stat.S_ISLNK(st.st_mode):
            os.chmod(to, stat.S_IMODE(st.st_mode))
        os.utime(to, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)


def main():
    cipher, cmk, out = sys.argv[1:]
    os.mkdir(out)
    Volume(cipher, cmk).copy_tree(cipher, out)


if __name__ == "__main__":
    main()
