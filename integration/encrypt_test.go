package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

// sdkFormats are the formats of the clouds' encryption SDKs, with the scheme of their CMKs.
func sdkFormats() map[string]string {
	return map[string]string{"alibaba": "acs:", "alibaba-stream": "acs:", "huawei": "huawei:", "huawei-stream": "huawei:"}
}

// piped runs the program with bytes on standard input. What it prints to standard output is not taken for a leak.
func (v *volume) piped(t testing.TB, stdin []byte, args ...string) result {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = append(append(os.Environ(), "KMSFS_CONFIG_DIR="+v.config), v.env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	v.printed.Write(stderr.Bytes())
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// pattern is plaintext that no two offsets nearby share.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + (i>>8)*13 + 5)
	}
	return b
}

// put writes a file into the volume's directory and returns its path.
func (v *volume) put(t testing.TB, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(v.dir, name)
	must(t, os.WriteFile(path, b, 0o600))
	return path
}

// is checks that a file holds bytes, is for its owner only, and removes it.
func (v *volume) is(t testing.TB, name string, want []byte) {
	t.Helper()
	path := filepath.Join(v.dir, name)
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes, want %d, %v", name, len(got), len(want), err)
		return
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%s: mode %v, %v", name, st.Mode(), err)
	}
	must(t, os.Remove(path))
}

// TestEncrypt goes through every format, algorithm and way, with two CMKs, each of which opens alone.
func TestEncrypt(t *testing.T) {
	t.Parallel() // it waits, most of its time
	c := newClouds(t, emulator.Options{CMKs: []emulator.CMK{
		{URI: "acs:kms:cn-hangzhou:1000000000000001:key/key-hzz00000000000000000000"},
		{URI: "acs:kms:ap-southeast-1:1000000000000001:key/key-sgp00000000000000000000", Spec: "SM4"},
		{URI: "huawei:kms:cn-north-4:0000000000000000000000000000cafe:key/11111111-1111-4111-8111-111111111111", Spec: "SM4"},
		{URI: "huawei:kms:ap-southeast-3:0000000000000000000000000000beef:key/22222222-2222-4222-8222-222222222222"},
	}})
	plain := pattern(100000)
	in := c.put(t, "in", plain)
	formats := sdkFormats()
	formats["kmsfs"] = ""
	for format, scheme := range formats {
		var cmks, wrap []string
		for _, cmk := range c.cmks {
			if strings.HasPrefix(cmk, scheme) {
				cmks, wrap = append(cmks, cmk), append(wrap, "--cmk", cmk)
			}
		}
		for _, algorithm := range []string{"aes-256-gcm", "aes-128-gcm", "sm4-128-gcm"} {
			c.ResetCalls()
			args := append([]string{"encrypt", "--format", format, "--algorithm", algorithm, "--context", "team=web", "--context", "路=x<y"}, wrap...)
			c.ok(t, append(args, in, filepath.Join(c.dir, "sealed"))...)
			if n := c.asked(""); n != len(cmks) {
				t.Errorf("%s: %d calls to wrap for %d CMKs", format, n, len(cmks))
			}
			for _, cmk := range cmks {
				c.ResetCalls()
				c.ok(t, "decrypt", "--cmk", cmk, "--context", "team=web", filepath.Join(c.dir, "sealed"), filepath.Join(c.dir, "out"))
				c.is(t, "out", plain)
				if c.asked(cmk) != c.asked("") {
					t.Errorf("%s: others were asked than %s: %+v", format, cmk, c.Calls())
				}
			}
			// Who is not trusted is not asked.
			c.ResetCalls()
			names := append([]string{"--cmk"}, cmks...)
			if scheme == "huawei:" {
				names = []string{"not named", "--cmk"}
			}
			c.refused(t, 6, names, "decrypt", "--cmk", "acs:kms:cn-hangzhou:1000000000000001:key/another", filepath.Join(c.dir, "sealed"), filepath.Join(c.dir, "out"))
			if n := c.asked(""); n != 0 {
				t.Errorf("%s: %d calls to nobody trusted", format, n)
			}
			c.refused(t, 1, []string{"team=db"}, "decrypt", "--cmk", cmks[0], "--context", "team=db", filepath.Join(c.dir, "sealed"), filepath.Join(c.dir, "out"))
			must(t, os.Remove(filepath.Join(c.dir, "sealed")))
		}
		for _, n := range []int{0, 1, 5000, len(plain)} {
			sealed := c.piped(t, plain[:n], append(append([]string{"encrypt", "--format", format}, wrap...), "-", "-")...)
			if sealed.code != 0 {
				t.Fatalf("%s: %s", format, sealed.stderr)
			}
			for _, named := range [][]string{{"--format", format}, nil} { // or the format is found out
				args := slices.Concat([]string{"decrypt"}, named, []string{"--cmk", cmks[1], "-", "-"})
				if opened := c.piped(t, []byte(sealed.stdout), args...); opened.code != 0 || opened.stdout != string(plain[:n]) {
					t.Errorf("%s, %d bytes: exit code %d, %d bytes\n%s", format, n, opened.code, len(opened.stdout), opened.stderr)
				}
			}
		}
		if strings.HasSuffix(format, "-stream") {
			continue // what follows takes seconds, and is the same for them
		}
		// A region that is down.
		c.ok(t, append(append([]string{"encrypt", "--format", format}, wrap...), in, filepath.Join(c.dir, "sealed"))...)
		for i, cmk := range c.cmks {
			if cmk == cmks[0] {
				c.faults(t, c.down(i)...)
			}
		}
		c.ok(t, append(append([]string{"decrypt"}, wrap...), filepath.Join(c.dir, "sealed"), filepath.Join(c.dir, "out"))...)
		c.is(t, "out", plain)
		c.refused(t, 6, []string{cmks[0], "refused"}, append(append([]string{"encrypt", "--format", format}, wrap...), in, filepath.Join(c.dir, "none"))...)
		c.faults(t)
		must(t, os.Remove(filepath.Join(c.dir, "sealed")))
	}
	c.nothingLeft(t, "in")
}

// nothingLeft checks that the volume's directory has no other files than these and the volume's own.
func (v *volume) nothingLeft(t *testing.T, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(v.dir)
	must(t, err)
	for _, e := range entries {
		if !slices.Contains(append(names, "cmk", "config", "cipher", "plain", "log"), e.Name()) {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// A sdkVector is a message that a vendor's own SDK made.
type sdkVector struct {
	ID      string            `json:"id"`
	Keyring string            `json:"keyring"`
	Context map[string]string `json:"context"`
	DEK     string            `json:"dek_hex"`
	CMKs    []json.RawMessage `json:"cmks"`
	EDKs    []struct {
		CMK  string `json:"cmk"`
		Blob string `json:"blob_hex"`
	} `json:"edks"`
	AlgorithmID     int    `json:"algorithm_id"`
	PlaintextSHA256 string `json:"plaintext_sha256"`
	MessageFile     string `json:"message_file"`
	RawMasterKey    string `json:"raw_master_key_hex"`
	RawPrivateKey   string `json:"raw_private_key_pkcs8_hex"`

	path string
}

func sdkVectors(t *testing.T) (all []sdkVector) {
	t.Helper()
	for _, vendor := range []string{"alibaba", "huawei"} {
		dir := filepath.Join("..", "sdkformat", "testdata", vendor)
		b, err := os.ReadFile(filepath.Join(dir, "index.json"))
		must(t, err)
		var index struct {
			Vectors []sdkVector `json:"vectors"`
		}
		must(t, json.Unmarshal(b, &index))
		for _, s := range index.Vectors {
			s.path = filepath.Join(dir, s.MessageFile)
			all = append(all, s)
		}
	}
	if len(all) < 40 {
		t.Fatalf("only %d vectors", len(all))
	}
	return all
}

// cmkURIs returns the URIs of the CMKs of a vector, by what its EDKs call them.
func (s *sdkVector) cmkURIs(t *testing.T) map[string]string {
	uris := make(map[string]string)
	for _, raw := range s.CMKs {
		var arn string
		if json.Unmarshal(raw, &arn) == nil {
			uris[arn] = arn
			continue
		}
		var h struct {
			Region  string `json:"region"`
			KeyID   string `json:"key_id"`
			Project string `json:"project_id"`
		}
		must(t, json.Unmarshal(raw, &h))
		uris[h.KeyID] = "huawei:kms:" + h.Region + ":" + h.Project + ":key/" + h.KeyID
	}
	return uris
}

// rawKey writes the master key of a raw keyring into a file.
func (s *sdkVector) rawKey(t *testing.T, v *volume) string {
	t.Helper()
	text := []byte(s.RawMasterKey + "\n")
	if s.RawPrivateKey != "" {
		der, err := hex.DecodeString(s.RawPrivateKey)
		must(t, err)
		text = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	return v.put(t, "raw", text)
}

// TestDecryptVectors opens what the vendors' own SDKs made: each message with each of its CMKs alone.
func TestDecryptVectors(t *testing.T) {
	var o emulator.Options
	seen := make(map[string]bool)
	all := sdkVectors(t)
	for _, s := range all {
		if strings.HasPrefix(s.Keyring, "raw") {
			continue // no KMS has wrapped its data key
		}
		uris := s.cmkURIs(t)
		for _, uri := range uris {
			if !seen[uri] {
				seen[uri] = true
				o.CMKs = append(o.CMKs, emulator.CMK{URI: uri})
			}
		}
		dk, err := hex.DecodeString(s.DEK)
		must(t, err)
		for _, e := range s.EDKs {
			blob, err := hex.DecodeString(e.Blob)
			must(t, err)
			o.Wrapped = append(o.Wrapped, emulator.Wrapped{CMK: uris[e.CMK], Blob: blob, DataKey: dk, Context: s.Context})
		}
	}
	c := newClouds(t, o)
	out := filepath.Join(c.dir, "out")
	opened := 0
	for _, s := range all {
		uris := s.cmkURIs(t)
		if strings.HasPrefix(s.Keyring, "raw") {
			uris = map[string]string{"": s.rawKey(t, c.volume)}
		}
		var facts struct {
			Kind, Format, Algorithm, Warning string
			Context                          map[string]string
			EDKs                             []struct{ CMK string }
		}
		must(t, json.Unmarshal([]byte(c.ok(t, "inspect", "--json", s.path)), &facts))
		authentic := s.AlgorithmID <= 2 || s.AlgorithmID == 9 || s.Keyring != "" && s.AlgorithmID == 3
		if facts.Kind != "message" || sdkFormats()[facts.Format] == "" || strings.HasSuffix(facts.Algorithm, "-GCM") != authentic || (facts.Warning == "") != authentic ||
			!maps.Equal(facts.Context, s.Context) || len(facts.EDKs) != len(s.EDKs) || len(facts.EDKs) == 0 {
			t.Errorf("%s: inspect shows %+v", s.ID, facts)
		}
		for _, uri := range uris {
			args := []string{"decrypt", "--cmk", uri}
			if strings.HasPrefix(s.Keyring, "raw") {
				args = []string{"decrypt", "--raw-key", uri}
				if authentic {
					wrong := c.put(t, "wrong", []byte(strings.Repeat("5a", 16)))
					c.refused(t, 6, []string{s.path, "--raw-key FILE"}, "decrypt", s.path, out)
					c.refused(t, 6, []string{s.path, "--raw-key opens none"}, "decrypt", "--raw-key", wrong, s.path, out)
				}
			}
			if !authentic {
				c.refused(t, 1, []string{s.path, "--allow-unauthenticated"}, append(args, s.path, out)...)
				args = append(args, "--allow-unauthenticated")
			}
			c.ok(t, append(args, s.path, out)...)
			b, err := os.ReadFile(out)
			must(t, err)
			if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != s.PlaintextSHA256 {
				t.Errorf("%s with %s: another plaintext, of %d bytes", s.ID, uri, len(b))
			}
			must(t, os.Remove(out))
			opened++
		}
	}
	if opened < 40 {
		t.Errorf("only %d opened", opened)
	}
}

// TestEncryptDropIn puts a file into a volume of plaintext names, and decrypts files of volumes alone.
func TestEncryptDropIn(t *testing.T) {
	for _, names := range []string{"plaintext names", "sealed names"} {
		args := []string{"--algorithm", "aes-256-gcm", "--context", "team=web", "--segment-size", "8192"}
		if names == "plaintext names" {
			args = append(args, "--plaintext-names")
		}
		v := newVolume(t, args...)
		plain := pattern(100000)
		in := v.put(t, "in", plain)
		local := "local:" + v.cmk
		if names == "plaintext names" {
			v.ok(t, "encrypt", "--cmk", local, "--context", "team=web", "--segment-size", "8192", in, filepath.Join(v.dir, "sealed"))
			shell(t, v.dir, "mv sealed cipher/dropped")
			v.ok(t, "encrypt", "--cmk", local, "--context", "team=web", in, filepath.Join(v.cipher, "made"))
			if r := v.run(t, "encrypt", "--cmk", local, "--context", "team=db", in, filepath.Join(v.cipher, "foreign")); r.code != 0 || !strings.Contains(r.stderr, "another encryption context") {
				t.Errorf("made in a volume of another context: exit code %d, %s", r.code, r.stderr)
			}
		}
		v.mount(t)
		must(t, os.WriteFile(filepath.Join(v.plain, "file"), plain, 0o600))
		shell(t, v.plain, "truncate -s 20M sparse; printf x | dd of=sparse bs=1 seek=10000000 conv=notrunc status=none; : > empty")
		if names == "plaintext names" {
			for _, name := range []string{"dropped", "made"} {
				if b, err := os.ReadFile(filepath.Join(v.plain, name)); err != nil || !bytes.Equal(b, plain) {
					t.Errorf("%s: %d bytes, %v", name, len(b), err)
				}
			}
			if _, err := os.ReadFile(filepath.Join(v.plain, "foreign")); err == nil {
				t.Error("a file of another context opens")
			}
			must(t, os.Remove(filepath.Join(v.plain, "foreign")))
		}
		want := map[string]int{}
		for _, name := range []string{"file", "sparse", "empty", "dropped", "made"} {
			if b, err := os.ReadFile(filepath.Join(v.plain, name)); err == nil {
				want[string(b)]++
			}
		}
		v.umount(t)
		// The machine's record of the volume says which CMK is trusted.
		for _, sealed := range v.sealedFiles(t) {
			out := filepath.Join(v.dir, "out")
			v.ok(t, "decrypt", sealed, out)
			b, err := os.ReadFile(out)
			must(t, err)
			if want[string(b)]--; want[string(b)] < 0 {
				t.Errorf("%s decrypts to %d bytes that are no file's", sealed, len(b))
			}
			if st, err := os.Stat(out); err != nil || st.Size() > 10<<20 && st.Sys().(*syscall.Stat_t).Blocks*512 > st.Size()/2 {
				t.Errorf("%s: a hole was filled, %v", sealed, err)
			}
			if r := v.piped(t, must2(os.ReadFile(sealed))(t), "decrypt", "--cmk", local, "-", "-"); r.code != 0 || r.stdout != string(b) {
				t.Errorf("%s from a pipe: exit code %d, %d bytes\n%s", sealed, r.code, len(r.stdout), r.stderr)
			}
			must(t, os.Remove(out))
		}
		for b, n := range want {
			if n > 0 {
				t.Errorf("%d files of %d bytes were not among the ciphertext", n, len(b))
			}
		}
		v.ok(t, "fsck", v.cipher)
	}
}

func must2[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		must(t, err)
		return v
	}
}

// TestEncryptKeepsHoles encrypts a sparse file to one, and back.
func TestEncryptKeepsHoles(t *testing.T) {
	v := newVolume(t)
	shell(t, v.dir, "truncate -s 64M in; printf data | dd of=in bs=1 seek=30000000 conv=notrunc status=none")
	v.ok(t, "encrypt", "--cmk", "local:"+v.cmk, filepath.Join(v.dir, "in"), filepath.Join(v.dir, "sealed"))
	v.ok(t, "decrypt", "--cmk", "local:"+v.cmk, filepath.Join(v.dir, "sealed"), filepath.Join(v.dir, "out"))
	shell(t, v.dir, "cmp in out")
	for _, name := range []string{"sealed", "out"} {
		st, err := os.Stat(filepath.Join(v.dir, name))
		must(t, err)
		if st.Size() < 64<<20 || st.Sys().(*syscall.Stat_t).Blocks*512 > st.Size()/2 {
			t.Errorf("%s has %d bytes in %d blocks", name, st.Size(), st.Sys().(*syscall.Stat_t).Blocks)
		}
	}
}

// TestDecryptRefuses cuts, extends and changes ciphertext of every format: nothing that is not authenticated comes out, and no file at all.
func TestDecryptRefuses(t *testing.T) {
	c := newClouds(t, emulator.Options{})
	plain := pattern(9000)
	in, out := c.put(t, "in", plain), filepath.Join(c.dir, "out")
	formats := sdkFormats()
	formats["kmsfs"] = "acs:"
	for format, scheme := range formats {
		cmk := c.cmks[slices.IndexFunc(c.cmks, func(cmk string) bool { return strings.HasPrefix(cmk, scheme) })]
		must(t, os.RemoveAll(filepath.Join(c.dir, "sealed")))
		c.ok(t, "encrypt", "--format", format, "--cmk", cmk, in, filepath.Join(c.dir, "sealed"))
		sealed, err := os.ReadFile(filepath.Join(c.dir, "sealed"))
		must(t, err)
		bad := map[string][]byte{"extended": append(bytes.Clone(sealed), 0)}
		for i := range 7 {
			at := i * (len(sealed) - 1) / 6
			bad[fmt.Sprint("cut to ", at)] = sealed[:at]
			flipped := bytes.Clone(sealed)
			flipped[at] ^= 1
			bad[fmt.Sprint("flipped ", at)] = flipped
		}
		for what, b := range bad {
			if format == "kmsfs" && len(b) == 0 {
				continue // the ciphertext of nothing
			}
			file := c.put(t, "bad", b)
			args := []string{"decrypt", "--format", format, "--cmk", cmk}
			r := c.run(t, append(args, file, out)...)
			if !slices.Contains([]int{3, 4, 5, 6}, r.code) || !strings.HasPrefix(r.stderr, "kmsfs: decrypt "+file) {
				t.Errorf("%s, %s: exit code %d, %s", format, what, r.code, r.stderr)
			}
			if _, err := os.Lstat(out); !os.IsNotExist(err) {
				t.Fatalf("%s, %s: there is an output, %v", format, what, err)
			}
			for _, r := range []result{c.run(t, append(args, file, "-")...), c.piped(t, b, append(args, "-", "-")...)} {
				whole := format != "kmsfs" && format != "huawei-stream"
				if r.code == 0 || !strings.HasPrefix(string(plain), r.stdout) || whole && r.stdout != "" {
					t.Errorf("%s, %s, to standard output: exit code %d, %d bytes", format, what, r.code, len(r.stdout))
				}
			}
		}
	}
	must(t, os.Remove(filepath.Join(c.dir, "bad")))
	must(t, os.Remove(filepath.Join(c.dir, "sealed")))
	c.nothingLeft(t, "in")
}

// badEncrypts are wrong uses of encrypt and decrypt.
func badEncrypts() []badInput {
	const smallDisk, off = "mkdir disk; mount -t tmpfs -o size=64k tmpfs disk; head -c 200000 /dev/zero > in", "umount disk"
	sealed := "echo text > in; KMSFS_CONFIG_DIR=$C $KMSFS encrypt --cmk local:$K in sealed"
	return []badInput{
		{name: "no operand", args: "encrypt --cmk local:$K", code: exitUsage, says: "IN is missing"},
		{name: "one operand", args: "decrypt $K", code: exitUsage, says: "OUT is missing"},
		{name: "three operands", args: "decrypt $K $R/a $R/b", code: exitUsage, says: "/b.*one too many"},
		{name: "flags behind", args: "encrypt $K $R/a --cmk local:$K", code: exitUsage, says: "flags first"},
		{name: "no CMK", args: "encrypt $K $R/a", code: exitUsage, says: "at least one --cmk"},
		{name: "a CMK of nobody", args: "encrypt --cmk aws:x $K $R/a", code: exitUsage, says: "aws:x"},
		{name: "no such CMK", args: "encrypt --cmk local:$R/none $K $R/a", code: exitCMK, says: "$R/none"},
		{name: "unknown format", args: "encrypt --format alibabba --cmk local:$K $K $R/a", code: exitUsage, says: "alibabba.*did you mean alibaba"},
		{name: "unknown format to read", args: "decrypt --format zip $K $R/a", code: exitUsage, says: "zip.*huawei-stream"},
		{name: "a local CMK for an SDK", args: "encrypt --format huawei --cmk local:$K $K $R/a", code: exitUsage, says: "huawei needs CMKs huawei:kms.*local:"},
		{name: "a CMK of the other cloud", args: "encrypt --format alibaba --cmk huawei:kms:r:p:key/k $K $R/a", code: exitUsage, says: "alibaba needs CMKs acs:kms"},
		{name: "segments of an SDK", args: "encrypt --format huawei-stream --segment-size 4096 --cmk huawei:kms:r:p:key/k $K $R/a", code: exitUsage, says: "--segment-size"},
		{name: "bad segment size", args: "encrypt --segment-size 5000 --cmk local:$K $K $R/a", code: exitUsage, says: "5000"},
		{name: "bad header size", args: "encrypt --header-size 100 --cmk local:$K $K $R/a", code: exitUsage, says: "100"},
		{name: "small header", args: "encrypt --header-size 512 --context a=" + strings.Repeat("x", 500) + " --cmk local:$K $K $R/a", code: exitUsage, says: "do not fit"},
		{name: "bad algorithm", args: "encrypt --algorithm aes-256-cbc --cmk local:$K $K $R/a", code: exitUsage, says: "aes-256-cbc"},
		{name: "bad context", args: "decrypt --context team $K $R/a", code: exitUsage, says: "team.*KEY=VALUE"},
		{name: "output exists", setup: "echo keep > a", args: "encrypt --cmk local:$K $K $R/a", code: exitOther, says: "$R/a exists.*--force"},
		{name: "output exists, decrypt", setup: sealed + "; echo keep > a", args: "decrypt --cmk local:$K $R/sealed $R/a", code: exitOther, says: "$R/a exists.*--force"},
		{name: "output is a directory", args: "encrypt --force --cmk local:$K $K $R", code: exitOther, says: "$R is not a regular file"},
		{name: "output is a link", setup: "echo keep > a; ln -s a l", args: "encrypt --force --cmk local:$K $K $R/l", code: exitOther, says: "$R/l is not a regular file"},
		{name: "output is a device", args: "encrypt --force --cmk local:$K $K /dev/null", code: exitOther, says: "/dev/null is not a regular file"},
		{name: "output in no directory", args: "encrypt --cmk local:$K $K $R/none/a", code: exitOther, says: "$R/none"},
		{name: "no input", args: "encrypt --cmk local:$K $R/none $R/a", code: exitOther, says: "$R/none.*no such file"},
		{name: "input is a directory", args: "encrypt --cmk local:$K $R $R/a", code: exitOther, says: "$R.*is a directory"},
		{name: "not ciphertext", args: "decrypt --cmk local:$K $K $R/a", code: exitNotVolume, says: "$K.*no format"},
		{name: "not of this format", setup: sealed, args: "decrypt --format alibaba --cmk local:$K $R/sealed $R/a", code: exitNotVolume, says: "$R/sealed.*alibaba"},
		{name: "the header of a volume", args: "decrypt --cmk local:$K $V/.kmsfs/volume $R/a", code: exitNotVolume, says: "that of a volume"},
		{name: "nothing as a message", setup: ": > in", args: "decrypt --format huawei --cmk local:$K $R/in $R/a", code: exitNotVolume, says: "$R/in"},
		{name: "nothing has no context", setup: ": > in", args: "decrypt --context a=b --cmk local:$K $R/in $R/a", code: exitOther, says: "a=b"},
		{name: "a newer format", setup: sealed + `; printf '\2' | dd of=sealed bs=1 seek=9 conv=notrunc status=none`, args: "decrypt --cmk local:$K $R/sealed $R/a", code: exitVersion, says: "$R/sealed.*newer"},
		{name: "nobody trusted", setup: sealed, args: "decrypt $R/sealed $R/a", code: exitCMK, says: "no CMK.*trusted(?s:.*)--cmk"},
		{name: "another CMK", setup: sealed + "; $KMSFS key new other >/dev/null", args: "decrypt --cmk local:$R/other $R/sealed $R/a", code: exitCMK, says: "local:[0-9a-f]{32}.*--cmk"},
		{name: "a raw key that is none", setup: sealed + "; echo 00 > raw; chmod 600 raw", args: "decrypt --raw-key $R/raw $R/sealed $R/a", code: exitCMK, says: "$R/raw.*hex digits"},
		{name: "a raw key that others read", setup: sealed + "; install -m 644 /dev/null raw", args: "decrypt --raw-key $R/raw $R/sealed $R/a", code: exitCMK, says: "$R/raw.*chmod 600"},
		{name: "no raw key", args: "decrypt --raw-key $R/raw $K $R/a", code: exitCMK, says: "$R/raw"},
		{name: "encrypt on a full disk", setup: smallDisk, cleanup: off, args: "encrypt --cmk local:$K $R/in $R/disk/a", code: exitIO, says: "$R/disk/a.*no space"},
		{name: "decrypt on a full disk", setup: smallDisk + "; KMSFS_CONFIG_DIR=$C $KMSFS encrypt --cmk local:$K in sealed", cleanup: off,
			args: "decrypt --cmk local:$K $R/sealed $R/disk/a", code: exitIO, says: "$R/disk/a.*no space"},
		{name: "an output of others", setup: sealed, args: "decrypt --cmk local:$K $R/sealed $R/a", user: true, code: exitOther, says: "permission denied"},
	}
}

func TestEncryptBadInput(t *testing.T) {
	v := newVolume(t)
	program := filepath.Join(v.dir, "kmsfs")
	shell(t, v.dir, "install -m 755 "+binary+" kmsfs")
	must(t, os.Mkdir(filepath.Join(v.dir, "rows"), 0o755))
	for i, r := range badEncrypts() {
		t.Run(r.name, func(t *testing.T) { r.test(t, v, program, filepath.Join(v.dir, "rows", fmt.Sprint(i))) })
	}
}

// TestEncryptForce replaces an output, and keeps what was there until it is complete.
func TestEncryptForce(t *testing.T) {
	v := newVolume(t)
	in, out := v.put(t, "in", pattern(5000)), v.put(t, "out", []byte("old"))
	v.ok(t, "encrypt", "--cmk", "local:"+v.cmk, in, filepath.Join(v.dir, "sealed"))
	cut := v.put(t, "cut", must2(os.ReadFile(filepath.Join(v.dir, "sealed")))(t)[:4000])
	v.refused(t, 4, []string{cut}, "decrypt", "--force", "--cmk", "local:"+v.cmk, cut, out)
	v.is(t, "out", []byte("old"))
	v.put(t, "out", []byte("old"))
	v.ok(t, "decrypt", "--force", "--cmk", "local:"+v.cmk, filepath.Join(v.dir, "sealed"), out)
	v.is(t, "out", pattern(5000))
	v.nothingLeft(t, "in", "cut", "sealed")
}

// TestEncryptInterrupted stops the program while it waits for input: no output is left, and none comes later.
func TestEncryptInterrupted(t *testing.T) {
	v := newVolume(t)
	for _, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		cmd := exec.Command(binary, "encrypt", "--cmk", "local:"+v.cmk, "-", filepath.Join(v.dir, "out"))
		cmd.Env = append(os.Environ(), "KMSFS_CONFIG_DIR="+v.config)
		stdin, err := cmd.StdinPipe()
		must(t, err)
		must(t, cmd.Start())
		_, err = io.Copy(stdin, bytes.NewReader(pattern(3<<20))) // returns when it has been read, but for a pipe's length
		must(t, err)
		must(t, cmd.Process.Signal(signal))
		if err := cmd.Wait(); err == nil {
			t.Errorf("%v: no error", signal)
		}
		stdin.Close()
		if signal == syscall.SIGKILL { // not every file system below has files without a name
			shell(t, v.dir, "rm -f .kmsfs-*")
		}
		v.nothingLeft(t)
	}
}

// TestEncryptMemory needs no more memory for a longer message, although it has one tag over all of it.
func TestEncryptMemory(t *testing.T) {
	c := newClouds(t, emulator.Options{})
	const size, late, most = 160 << 20, 1 << 20, 100 << 10 // bytes, bytes, KiB
	shell(t, c.dir, fmt.Sprint("truncate -s ", size, " in"))
	for _, args := range [][]string{
		{"encrypt", "--format", "alibaba", "--cmk", c.cmks[0], filepath.Join(c.dir, "in"), "-"},
		{"decrypt", "--cmk", c.cmks[0], filepath.Join(c.dir, "sealed"), "-"},
	} {
		out := io.Discard
		if args[0] == "encrypt" {
			f, err := os.Create(filepath.Join(c.dir, "sealed"))
			must(t, err)
			defer f.Close()
			out = f
		}
		cmd := exec.Command(binary, args...)
		cmd.Env = append(append(os.Environ(), "KMSFS_CONFIG_DIR="+c.config), c.env...)
		stdout, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		// It waits for the rest to be read, which is more than a pipe holds.
		_, err = io.CopyN(out, stdout, size-late)
		must(t, err)
		status := shell(t, c.dir, fmt.Sprintf("grep VmHWM /proc/%d/status", cmd.Process.Pid))
		var kib int
		if _, err := fmt.Sscanf(status, "VmHWM: %d kB", &kib); err != nil || kib > most {
			t.Errorf("%s: %s, %v", args[0], status, err)
		}
		_, err = io.Copy(out, stdout)
		must(t, err)
		must(t, cmd.Wait())
	}
	for _, name := range []string{"in", "sealed"} { // which are long to search for secrets
		must(t, os.Remove(filepath.Join(c.dir, name)))
	}
}
