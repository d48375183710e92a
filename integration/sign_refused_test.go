package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

// TestSignFaults lets the KMS fail, and lie: no signature is written that its public key does not verify.
func TestSignFaults(t *testing.T) {
	c := newClouds(t, emulator.Options{CMKs: signingCMKs()[:4]})
	file, out := filepath.Join(c.dir, "file"), filepath.Join(c.dir, "out")
	must(t, os.WriteFile(file, []byte("content"), 0o600))
	n := 0
	for _, cmk := range c.cmks {
		describe, public, sign, key, value := "DescribeKey", "GetPublicKey", "AsymmetricSign", "PublicKey", "Value"
		if strings.HasPrefix(cmk, "huawei") {
			describe, public, sign, key, value = "describe-key", "get-publickey", "sign", "public_key", "signature"
		}
		for _, f := range []emulator.Fault{
			{Operation: sign, Kind: emulator.WrongKeyID},
			{Operation: sign, Kind: emulator.WrongLength},
			{Operation: sign, Kind: emulator.WrongPlaintext},
			{Operation: sign, Kind: emulator.DropField, Field: value},
			{Operation: sign, Kind: emulator.Empty},
			{Operation: sign, Kind: emulator.Redirect},
			{Operation: sign, Kind: emulator.Status, Status: 403, Code: "Forbidden"},
			{Operation: public, Kind: emulator.WrongKeyID},
			{Operation: public, Kind: emulator.DropField, Field: key},
			{Operation: public, Kind: emulator.Empty},
			{Operation: describe, Kind: emulator.Empty},
			{Operation: describe, Kind: emulator.Status, Status: 404},
		} {
			n++
			f.CMK = cmk
			c.faults(t, f)
			c.refused(t, exitCMK, []string{cmk}, "sign", "--cmk", cmk, "--out", out, file)
			if _, err := os.Lstat(out); err == nil {
				t.Errorf("%s, %+v: signed", cmk, f)
			}
			if entries, err := os.ReadDir(c.dir); err != nil || len(entries) != 3 { // configuration, file, mountpoint
				t.Errorf("%s, %+v: left behind: %v, %v", cmk, f, entries, err)
			}
		}
		// What passes is tried again.
		c.faults(t, emulator.Fault{CMK: cmk, Operation: sign, Kind: emulator.Status, Status: 503, Count: 1}, emulator.Fault{CMK: cmk, Operation: public, Kind: emulator.Throttle, Count: 1},
			emulator.Fault{CMK: cmk, Operation: describe, Kind: emulator.Reset, Count: 1})
		c.ok(t, "sign", "--cmk", cmk, "--out", out, file)
		c.faults(t, emulator.Fault{CMK: cmk, Operation: public, Kind: emulator.Status, Status: 403, Code: "Forbidden"})
		c.refused(t, exitCMK, []string{cmk}, "verify", "--cmk", cmk, out, file)
		c.faults(t)
		c.ok(t, "verify", "--cmk", cmk, out, file)
		for state, word := range map[emulator.State]string{
			emulator.Disabled: "disabled", emulator.PendingDeletion: "PENDING DELETION", emulator.Deleted: "no such CMK", emulator.Denied: "no permission",
		} {
			must(t, c.SetState(cmk, state))
			c.refused(t, exitCMK, []string{cmk, word}, "sign", "--cmk", cmk, "--out", out+"2", file)
		}
		must(t, c.SetState(cmk, emulator.Enabled))
		must(t, os.Remove(out))
	}
	if n < 40 {
		t.Errorf("only %d faults", n)
	}
}

// TestSignOtherKinds refuses CMKs that cannot sign, or by no algorithm that is verified here, before anything is read.
func TestSignOtherKinds(t *testing.T) {
	cmks := append(cloudCMKs()[:2], emulator.CMK{URI: "huawei:kms:cn-north-4:0000000000000000000000000000cafe:key/00000000-0000-4000-8000-000000000384", Spec: "EC_P384"},
		emulator.CMK{URI: "acs:kms:cn-hangzhou:1000000000000001:key/key-hzz0000000000000p384", Spec: "EC_P384"})
	c := newClouds(t, emulator.Options{CMKs: cmks})
	file := filepath.Join(c.dir, "file")
	must(t, os.WriteFile(file, []byte("content"), 0o600))
	for i, words := range [][]string{{"for encryption"}, {"for encryption"}, {"EC_P384", "EC_P256", "SM2"}, {"EC_P384", "EC_P256", "EC_SM2"}} {
		c.refused(t, exitCMK, append(words, c.cmks[i]), "sign", "--cmk", c.cmks[i], file)
		c.refused(t, exitCMK, append(words, c.cmks[i]), "key", "public", c.cmks[i])
	}
}

// TestSignBadInput uses sign and verify wrongly.
func TestSignBadInput(t *testing.T) {
	c := newSigned(t, signingCMKs()[:2])
	v := c.volume
	program := filepath.Join(v.dir, "kmsfs")
	shell(t, v.dir, "install -m 755 "+binary+" kmsfs; mkdir rows; echo content > file")
	c.ok(t, "sign", "--cmk", c.cmks[0], v.cipher)
	c.ok(t, "sign", "--cmk", c.cmks[0], filepath.Join(v.dir, "file"))
	pem := c.publicKey(t, c.cmks[0])
	vars := strings.NewReplacer("$PEM", pem, "$CMK2", c.cmks[1], "$CMK", c.cmks[0], "$F", filepath.Join(v.dir, "file"))
	rows := []badInput{
		{name: "sign nothing", args: "sign --cmk $CMK", code: exitUsage, says: "FILE_OR_CIPHERDIR is missing"},
		{name: "sign two", args: "sign --cmk $CMK $F $V", code: exitUsage, says: "one too many"},
		{name: "sign with nothing", args: "sign $F", code: exitUsage, says: "--cmk CMK"},
		{name: "sign with two", args: "sign --cmk $CMK --cmk $CMK2 $F", code: exitUsage, says: "one signing CMK"},
		{name: "sign with a local CMK", args: "sign --cmk local:$K $F", code: exitUsage, says: "local:$K cannot sign"},
		{name: "sign with no CMK", args: "sign --cmk aws:kms:x $F", code: exitUsage, says: "aws:kms:x"},
		{name: "sign what is not there", args: "sign --cmk $CMK $R/none", code: exitNotVolume, says: "$R/none"},
		{name: "sign a plain directory", args: "sign --cmk $CMK $R", code: exitNotVolume, says: "$R has no .kmsfs"},
		{name: "sign a FIFO", setup: "mkfifo f", args: "sign --cmk $CMK $R/f", code: exitOther, says: "$R/f is not a regular file"},
		{name: "sign a manifest as a file", args: "sign --cmk $CMK --out $R/out $V.manifest", code: exitUsage, says: "$V.manifest is a manifest"},
		{name: "sign into nothing", args: "sign --cmk $CMK --out= $F", code: exitUsage, says: "--out is empty"},
		{name: "sign over another file", setup: "echo precious > out", args: "sign --cmk $CMK --out $R/out $F", code: exitUsage, says: "$R/out is there"},
		{name: "sign over a signature of the other kind", setup: "cp $V.manifest out", args: "sign --cmk $CMK --out $R/out $F", code: exitUsage, says: "$R/out is there"},
		{name: "sign over a directory", args: "sign --cmk $CMK --out $R $F", code: exitUsage, says: "$R is not a regular file"},
		{name: "sign into no directory", args: "sign --cmk $CMK --out $R/none/x $F", code: exitOther, says: "$R/none"},
		{name: "sign into the volume", args: "sign --cmk $CMK --out $V/x $V", code: exitUsage, says: "$V/x would be in the volume"},
		{name: "sign into the volume by a link", setup: "ln -s $V l", args: "sign --cmk $CMK --out $R/l/x $V", code: exitUsage, says: "$V/x would be in the volume"},
		{name: "paths of a file", args: "sign --cmk $CMK --sealed-paths $F", code: exitUsage, says: "--sealed-paths"},
		{name: "trust for nothing", args: "sign --cmk $CMK --sealed-paths --trust local:$K $V", code: exitUsage, says: "--trust"},
		{name: "trust in nonsense", args: "sign --cmk $CMK --trust local:x $V", code: exitUsage, says: "local:x.*absolute"},
		{name: "sign on a full disk", setup: fullDisk, cleanup: "umount disk", args: "sign --cmk $CMK --out $R/disk/x $V", code: exitIO, says: "no space"},
		{name: "sign on a read-only disk", setup: readOnlyDisk, cleanup: "umount disk", args: "sign --cmk $CMK --out $R/disk/x $V", code: exitIO, says: "read-only"},
		{name: "verify one", args: "verify --public-key $PEM $F.sig", code: exitUsage, says: "FILE_OR_CIPHERDIR is missing"},
		{name: "verify with nothing", args: "verify $F.sig $F", code: exitUsage, says: "--public-key FILE"},
		{name: "verify with both", args: "verify --cmk $CMK --public-key $PEM $F.sig $F", code: exitUsage, says: "exclude each other"},
		{name: "verify with no key", args: "verify --public-key $R/none $F.sig $F", code: exitUsage, says: "$R/none"},
		{name: "verify with another file", args: "verify --public-key $F $F.sig $F", code: exitUsage, says: "$F.*PUBLIC KEY"},
		{name: "verify a key by itself", args: "verify --public-key $PEM $PEM $F", code: exitUnsigned, says: "$PEM.*not a kmsfs signature"},
		{name: "verify without a signature", args: "verify --public-key $PEM $R/none $F", code: exitOther, says: "$R/none"},
		{name: "verify an empty signature", setup: "touch s", args: "verify --public-key $PEM $R/s $F", code: exitUnsigned, says: "$R/s.*not a kmsfs signature"},
		{name: "verify what is not there", args: "verify --public-key $PEM $F.sig $R/none", code: exitNotVolume, says: "$R/none"},
		{name: "verify a volume with a signature", args: "verify --public-key $PEM $F.sig $V", code: exitUsage, says: "signature of a file"},
		{name: "verify a file with a manifest", args: "verify --public-key $PEM $V.manifest $F", code: exitUsage, says: "manifest of a volume"},
		{name: "verify a plain directory", args: "verify --public-key $PEM $V.manifest $R", code: exitNotVolume, says: "$R has no .kmsfs"},
		{name: "verify another volume", setup: "$KMSFS init --cmk local:$K other > /dev/null", env: "KMSFS_CONFIG_DIR=$R", args: "verify --public-key $PEM $V.manifest $R/other", code: exitDamaged, says: "of another volume.*$R/other"},
		{name: "public key of nothing", args: "key public", code: exitUsage, says: "CMK is missing"},
		{name: "public key of a local CMK", args: "key public local:$K", code: exitUsage, says: "cannot sign"},
	}
	for i, r := range rows {
		r.args, r.setup, r.says = vars.Replace(r.args), vars.Replace(r.setup), vars.Replace(r.says)
		r.env = strings.Join(c.env, " ") + " " + r.env
		t.Run(r.name, func(t *testing.T) {
			r.test(t, v, program, filepath.Join(v.dir, "rows", string(rune('a'+i%26))+string(rune('a'+i/26))))
		})
	}
}

// TestAttackSignedNote plants a file in the place of another one for the next mount, by a note of a re-encryption: nobody calls that volume as it was signed.
func TestAttackSignedNote(t *testing.T) {
	s := newSignedVolume(t)
	old, other := filepath.Join(s.cipher, s.sealed(t, "/docs/file2")), filepath.Join(s.cipher, s.sealed(t, "/docs/file3"))
	id := func(path string) []byte { // of a file, docs/format.md section 4.1
		b, err := os.ReadFile(path)
		must(t, err)
		return b[24:40]
	}
	relative, err := filepath.Rel(s.cipher, old)
	must(t, err)
	note := slices.Concat([]byte("kmsfsnam"), id(old), id(other), []byte{0, 0, 0, 1}, []byte{0, 0, 0, byte(len(relative))}, []byte(relative))
	sum := sha256.Sum256(note)
	work := filepath.Join(s.cipher, ".kmsfs", "reencrypt")
	must(t, os.Mkdir(work, 0o700))
	planted := filepath.Join(work, hex.EncodeToString(id(other)))
	shell(t, s.dir, "cp "+other+" "+planted)
	must(t, os.WriteFile(planted+".names", append(note, sum[:]...), 0o600))
	s.refused(t, exitInUse, []string{s.cipher, "reencrypt"}, "verify", "--public-key", s.public, s.manifest, s.cipher)

	// A torn note has no effect.
	must(t, os.WriteFile(planted+".names", note, 0o600))
	s.ok(t, "verify", "--public-key", s.public, s.manifest, s.cipher)
	must(t, os.WriteFile(planted+".names", append(note, sum[:]...), 0o600))
	mountpoint := s.mount(t)
	shell(t, mountpoint, "cmp docs/file2 docs/file3") // the attack works
	s.umount(t)
	s.refused(t, exitDamaged, []string{"not what was signed"}, "verify", "--public-key", s.public, s.manifest, s.cipher)
}
