package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

// exitUnsigned is beside those of lifecycle_test.go.
const exitUnsigned = 12

// signingCMKs are one of each kind that signs, at each cloud.
func signingCMKs() []emulator.CMK {
	return []emulator.CMK{
		{URI: "acs:kms:cn-hangzhou:1000000000000001:key/key-hzz0000000000000p256", Spec: "EC_P256"},
		{URI: "huawei:kms:cn-north-4:0000000000000000000000000000cafe:key/00000000-0000-4000-8000-000000000256", Spec: "EC_P256"},
		{URI: "acs:kms:cn-hangzhou:1000000000000001:key/key-hzz00000000000000sm2", Spec: "SM2"},
		{URI: "huawei:kms:cn-north-4:0000000000000000000000000000cafe:key/00000000-0000-4000-8000-000000000002", Spec: "SM2"},
		{URI: "acs:kms:cn-hangzhou:1000000000000001:key/key-hzz00000000000000rsa", Spec: "RSA_2048", Usage: emulator.SignVerify},
		{URI: "huawei:kms:cn-north-4:0000000000000000000000000000cafe:key/00000000-0000-4000-8000-000000002048", Spec: "RSA_2048", Usage: emulator.SignVerify},
	}
}

// newSigned makes a volume with a local CMK, and the regions of signing CMKs.
func newSigned(t *testing.T, cmks []emulator.CMK, initArgs ...string) *clouds {
	t.Helper()
	c := newClouds(t, emulator.Options{CMKs: cmks})
	c.ok(t, "key", "new", c.cmk)
	c.ok(t, append(append([]string{"init", "--cmk", "local:" + c.cmk}, initArgs...), c.cipher)...)
	return c
}

// publicKey saves the public key of a CMK and returns the path.
func (c *clouds) publicKey(t *testing.T, cmk string) string {
	t.Helper()
	path := filepath.Join(c.dir, "public-"+cmk[strings.LastIndex(cmk, "/")+1:]+".pem")
	must(t, os.WriteFile(path, []byte(c.ok(t, "key", "public", cmk)), 0o600))
	return path
}

// flipByte changes one byte of a file.
func flipByte(t *testing.T, path string, at int) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	must(t, os.WriteFile(path, b, 0o600))
}

// TestSignFile signs a file with each kind of key at each cloud, and verifies it with the KMS and without.
func TestSignFile(t *testing.T) {
	c := newClouds(t, emulator.Options{CMKs: signingCMKs()})
	file := filepath.Join(c.dir, "release.tar")
	sig := file + ".sig"
	must(t, os.WriteFile(file, []byte(strings.Repeat("content ", 100_000)), 0o600))
	other := c.publicKey(t, c.cmks[0])
	for i, cmk := range c.cmks {
		c.ResetCalls()
		c.ok(t, "sign", "--cmk", cmk, file)
		if n := c.Count("", "AsymmetricSign", "sign"); n != 1 {
			t.Errorf("%s: %d calls to sign", cmk, n)
		}
		public := c.publicKey(t, cmk)
		c.ResetCalls()
		if out := c.ok(t, "verify", "--cmk", cmk, sig, file); !strings.Contains(out, cmk) {
			t.Errorf("printed %q", out)
		}
		if n := c.Count(""); n != 1 {
			t.Errorf("verify made %+v", c.Calls())
		}
		c.ResetCalls()
		c.ok(t, "verify", "--public-key", public, sig, file)
		if n := len(c.Calls()); n != 0 {
			t.Errorf("verify without a KMS made %+v", c.Calls())
		}
		var answer struct {
			CMK, Algorithm string
			OK             bool
		}
		must(t, json.Unmarshal([]byte(c.ok(t, "verify", "--json", "--public-key", public, sig, file)), &answer))
		if answer.CMK != cmk || !answer.OK || answer.Algorithm == "" {
			t.Errorf("%+v", answer)
		}

		flipByte(t, file, 500_000)
		c.refused(t, exitDamaged, []string{file, "not what was signed"}, "verify", "--cmk", cmk, sig, file)
		flipByte(t, file, 500_000)
		if i > 0 {
			c.refused(t, exitUnsigned, []string{sig, "another key"}, "verify", "--public-key", other, sig, file)
			c.refused(t, exitUnsigned, []string{cmk, c.cmks[0]}, "verify", "--cmk", c.cmks[0], sig, file)
		}
		// Every line of the signature counts: the CMK and the version it names are of no consequence where the key comes from a file.
		text, err := os.ReadFile(sig)
		must(t, err)
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, " ")
			if name == "cmk" || name == "version" {
				continue
			}
			at := strings.Index(string(text), line)
			if value != "" {
				at += len(name) + 1
			}
			flipByte(t, sig, at)
			c.refused(t, exitUnsigned, []string{sig}, "verify", "--public-key", public, sig, file)
			must(t, os.WriteFile(sig, text, 0o600))
		}
		c.ok(t, "verify", "--public-key", public, sig, file)
	}
	st, err := os.Stat(sig)
	must(t, err)
	if st.Mode() != 0o644 {
		t.Errorf("mode %v", st.Mode())
	}
}

// populate fills the mounted volume with some of everything.
const populate = `mkdir -p docs/deep; for i in 1 2 3; do head -c 20000 /dev/urandom > docs/file$i; done
	echo 'unusual: ' > "$(printf 'docs/deep/a b\nc\\d')"; touch docs/empty
	ln -s target1 link1; ln -s target2 link2; ln -s $(printf 'x%.0s' $(seq 3500)) longlink
	touch docs/$(printf 'n%.0s' $(seq 250)); mkfifo fifo; ln docs/file1 hard
	truncate -s 30M sparse; printf data | dd of=sparse bs=1 seek=20000000 conv=notrunc status=none; echo end >> sparse
	touch f g; setfattr -n user.x -v one f; setfattr -n user.x -v two g`

// A signedVolume is a populated volume with its manifest, and the public key it is verified with.
type signedVolume struct {
	*clouds
	manifest, public string
}

// newSignedVolume returns one, with an older form of docs/file1 as old in its directory.
func newSignedVolume(t *testing.T, initArgs ...string) signedVolume {
	t.Helper()
	c := newSigned(t, signingCMKs()[:2], initArgs...)
	shell(t, c.mount(t), populate)
	c.umount(t)
	shell(t, c.dir, "cp -a cipher older")
	shell(t, c.mount(t), `printf new | dd of=docs/file1 bs=1 seek=5000 conv=notrunc status=none`)
	c.umount(t)
	s := signedVolume{c, c.cipher + ".manifest", c.publicKey(t, c.cmks[0])}
	c.ok(t, "sign", "--cmk", c.cmks[0], c.cipher)
	return s
}

// A verdict is what verify tells of one entry in JSON.
type verdict struct{ Kind, Ciphertext, Plaintext, From, Cause string }

// verify verifies a copy and returns the differences.
func (s signedVolume) verify(t *testing.T, dir string, flags ...string) (list []verdict) {
	t.Helper()
	r := s.run(t, append(append([]string{"verify", "--json", "--public-key", s.public}, flags...), s.manifest, dir)...)
	var answer struct {
		Differences []verdict
		Summary     struct {
			OK          bool
			Differences int
			Entries     int
		}
	}
	if err := json.Unmarshal([]byte(r.stdout), &answer); err != nil {
		t.Fatalf("%v: %s%s", err, r.stdout, r.stderr)
	}
	want := 0
	if len(answer.Differences) > 0 {
		want = exitDamaged
	}
	if r.code != want || answer.Summary.OK != (want == 0) || answer.Summary.Differences != len(answer.Differences) || answer.Summary.Entries < 17 {
		t.Errorf("exit code %d, %+v, %s", r.code, answer.Summary, r.stderr)
	}
	return answer.Differences
}

// sealed returns the ciphertext path, in the ciphertext directory, that the manifest has for a plaintext path.
func (s signedVolume) sealed(t *testing.T, plain string) string {
	t.Helper()
	b, err := os.ReadFile(s.manifest)
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 6 && f[len(f)-1] == plain {
			return "./" + f[len(f)-2] // it may begin with a hyphen
		}
	}
	t.Fatalf("the manifest does not have %s", plain)
	return ""
}

// TestAttackSigned does to a signed volume what reads do not detect, and what they do: verify names every entry that is touched, and no other. It needs
// no CMK but the public key.
func TestAttackSigned(t *testing.T) {
	s := newSignedVolume(t)
	must(t, os.Remove(s.cmk)) // nothing below needs the data key
	file1, file2, file3 := s.sealed(t, "/docs/file1"), s.sealed(t, "/docs/file2"), s.sealed(t, "/docs/file3")
	docs, link1, link2 := s.sealed(t, "/docs"), s.sealed(t, "/link1"), s.sealed(t, "/link2")
	f, g, fifo, empty := s.sealed(t, "/f"), s.sealed(t, "/g"), s.sealed(t, "/fifo"), s.sealed(t, "/docs/empty")
	hard := s.sealed(t, "/hard")
	vars := strings.NewReplacer("$OLD", filepath.Join(s.dir, "older"), "$FILE1", file1, "$FILE2", file2, "$FILE3", file3, "$DOCS", docs, "$L1", link1, "$L2", link2,
		"$FIFO", fifo, "$F", f, "$G", g, "$EMPTY", empty, "$HARD", hard)
	for name, a := range map[string]struct {
		script string
		want   []string // kinds and plaintext paths
	}{
		"nothing":           {`:`, nil},
		"times":             {`touch -d 2001-01-01 $FILE1 $DOCS .`, nil},
		"a copy's holes":    {`cp -a --sparse=never . ../dense; rm -rf ./* .kmsfs; cp -a --sparse=never ../dense/. .; rm -rf ../dense`, nil},
		"old file":          {`cat $OLD/$FILE2 > $FILE2; cat $OLD/$FILE1 > $FILE1`, []string{"changed /docs/file1", "changed /hard"}},
		"old segment":       {`dd if=$OLD/$FILE1 of=$FILE1 bs=1 skip=6184 seek=6184 count=4136 conv=notrunc status=none`, []string{"changed /docs/file1", "changed /hard"}},
		"swapped files":     {`mv $FILE2 t; mv $FILE3 $FILE2; mv t $FILE3`, []string{"swapped /docs/file2", "swapped /docs/file3"}},
		"copied over":       {`cp $FILE2 $FILE3`, []string{"replaced /docs/file3"}},
		"cut to nothing":    {`truncate -s 0 $FILE2`, []string{"changed /docs/file2"}},
		"cut":               {`truncate -s 6184 $FILE2`, []string{"changed /docs/file2"}},
		"appended":          {`printf x >> $FILE2`, []string{"changed /docs/file2"}},
		"grown by a hole":   {`truncate -s +4136 $FILE2`, []string{"changed /docs/file2"}},
		"zeroed":            {`fallocate -p -o 6184 -l 4136 $FILE2 || dd if=/dev/zero of=$FILE2 bs=1 seek=6184 count=4136 conv=notrunc status=none`, []string{"changed /docs/file2"}},
		"last bytes":        {`printf xxxxxxxx | dd of=$FILE2 bs=1 seek=$(($(stat -c %s $FILE2) - 8)) conv=notrunc status=none`, []string{"changed /docs/file2"}},
		"magic":             {`printf x | dd of=$FILE2 bs=1 conv=notrunc status=none`, []string{"changed /docs/file2"}},
		"file ID":           {`printf xxxx | dd of=$FILE2 bs=1 seek=24 conv=notrunc status=none`, []string{"replaced /docs/file2"}},
		"filled":            {`cat $FILE2 > $EMPTY`, []string{"replaced /docs/empty"}},
		"removed":           {`rm $FILE2`, []string{"removed /docs/file2"}},
		"removed directory": {`rm -r $DOCS`, []string{"removed *"}},
		"added":             {`mkdir new; mkfifo new/pipe`, []string{"added new", "added new/pipe"}},
		"added odd names": {`touch "$(printf 'a\nf 0644')"; mkdir -p z $DOCS/.kmsfs $DOCS/lost+found; touch z/a z- z.d $DOCS/.kmsfs/volume`,
			[]string{"added a\nf 0644", "added z", "added z/a", "added z-", "added z.d", "added .kmsfs", "added .kmsfs/volume", "added lost+found"}},
		"shown by no mount": {`mkdir lost+found; touch lost+found/x`, nil},
		"moved":             {`mv $FILE2 $DOCS/elsewhere`, []string{"removed /docs/file2", "moved elsewhere"}},
		"mode":              {`chmod 4777 $FILE2`, []string{"metadata /docs/file2"}},
		"owner":             {`chown 1234 $FILE2 $DOCS; chgrp 77 .`, []string{"metadata /", "metadata /docs", "metadata /docs/file2"}},
		"attribute":         {`setfattr -n $(getfattr --absolute-names -m user.kmsfs. $F | grep ^user) -v x $F`, []string{"metadata /f"}},
		"no attribute":      {`setfattr -x $(getfattr --absolute-names -m user.kmsfs. $F | grep ^user) $F`, []string{"metadata /f"}},
		"foreign attribute": {`setfattr -n user.backup -v x $F`, nil},
		"swapped attributes": {`x=$(getfattr --absolute-names -m user.kmsfs. $F | grep ^user); hex() { getfattr --absolute-names -e hex -n $x $1 | sed -n 's/.*=//p'; }
			a=$(hex $F); b=$(hex $G); setfattr -n $x -v $b $F; setfattr -n $x -v $a $G`, []string{"metadata /f", "metadata /g"}},
		"swapped targets":           {`a=$(readlink $L1); b=$(readlink $L2); ln -sfn -- $b $L1; ln -sfn -- $a $L2`, []string{"changed /link1", "changed /link2"}},
		"long target":               {`for l in .kmsfs/links/*; do printf xxxxxxxx | dd of=$l bs=1 conv=notrunc status=none; done`, []string{"changed /longlink"}},
		"long target gone":          {`rm .kmsfs/links/*`, []string{"changed /longlink"}},
		"link for a file":           {`rm $FILE2; ln -s /etc/passwd $FILE2`, []string{"replaced /docs/file2"}},
		"link for a directory":      {`mv $DOCS d; ln -s d $DOCS`, []string{"replaced /docs", "removed *", "moved *", "added *"}},
		"file for a FIFO":           {`rm $FIFO; cat $FILE2 > $FIFO`, []string{"replaced /fifo"}},
		"device for a FIFO":         {`rm $FIFO; mknod $FIFO c 1 3`, []string{"replaced /fifo"}},
		"directory ID":              {`rm $DOCS/kmsfs.dir.copy`, []string{"removed kmsfs.dir.copy"}},
		"hard link replaced":        {`cp $HARD t; mv t $HARD; printf xxxxxxxx | dd of=$HARD bs=1 seek=3000 conv=notrunc status=none`, []string{"changed /hard"}},
		"copy of the volume header": {`printf x | dd of=.kmsfs/volume.copy bs=1 seek=0 conv=notrunc status=none`, []string{"changed volume.copy"}},
		"volume header":             {`for h in volume volume.copy; do printf '\2' | dd of=.kmsfs/$h bs=1 seek=11 conv=notrunc status=none; done`, []string{"changed volume", "*"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(s.dir, "copy")
			defer os.RemoveAll(dir)
			shell(t, s.dir, "cp -a cipher copy")
			shell(t, dir, vars.Replace(a.script))
			var got []string
			for _, d := range s.verify(t, dir) {
				path := d.Plaintext
				if path == "" {
					path = d.Ciphertext
				}
				if d.Cause == "" && d.Kind != "removed" && d.Kind != "added" || !strings.HasPrefix(d.Ciphertext, dir) || (d.From != "") != (d.Kind == "swapped" || d.Kind == "moved") {
					t.Errorf("%+v", d)
				}
				got = append(got, d.Kind+" "+path)
			}
			if !matches(got, a.want) {
				t.Errorf("got %q, want %q", got, a.want)
			}
		})
	}
}

// matches reports whether each of got is one of want, and each of want is there: paths from / as a whole, others by their end, and * stands for any.
func matches(got, want []string) bool {
	seen := make([]bool, len(want))
	for _, g := range got {
		i := slices.IndexFunc(want, func(w string) bool {
			kind, path, _ := strings.Cut(w, " ")
			return w == g || w == "*" || strings.HasPrefix(g, kind+" ") && (path == "*" || path[0] != '/' && strings.HasSuffix(g, "/"+path))
		})
		if i < 0 {
			return false
		}
		seen[i] = true
	}
	return !slices.Contains(seen, false)
}

// TestSignedVolumeLivesOn does to a signed volume what its owner may, and copies it: nothing has changed for verify, but what he changes.
func TestSignedVolumeLivesOn(t *testing.T) {
	for _, initArgs := range [][]string{nil, {"--plaintext-names"}} {
		t.Run(fmt.Sprint(initArgs), func(t *testing.T) {
			s := newSignedVolume(t, initArgs...)
			if d := s.verify(t, s.cipher); len(d) > 0 {
				t.Fatalf("%+v", d)
			}
			second := filepath.Join(s.dir, "second")
			s.ok(t, "key", "new", second)
			s.ok(t, "rewrap", "--add", "local:"+second, s.cipher)
			s.ok(t, "fsck", s.cipher)
			shell(t, s.mount(t), "cat docs/file* sparse hard > /dev/null; ls -lR > /dev/null")
			s.umount(t)
			if d := s.verify(t, s.cipher); len(d) > 0 {
				t.Errorf("after a rewrap: %+v", d)
			}
			shell(t, s.mount(t), "echo more >> docs/file3; chmod 600 f; mv g h; echo x > new; rm docs/empty")
			s.umount(t)
			var got []string
			for _, d := range s.verify(t, s.cipher) {
				got = append(got, d.Kind+" "+d.Plaintext)
			}
			want := []string{"changed /docs/file3", "metadata /f", "removed /g", "added ", "added ", "removed /docs/empty"}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			s.ok(t, "sign", "--cmk", s.cmks[1], s.cipher)
			s.refused(t, exitUnsigned, []string{s.cmks[1]}, "verify", "--cmk", s.cmks[0], s.manifest, s.cipher)
			s.ok(t, "verify", "--cmk", s.cmks[1], s.manifest, s.cipher)
			// A copy that has lost modes and owners.
			shell(t, s.dir, "cp -a cipher copy; chmod -R go-rwx copy; chown -R 1:1 copy")
			if r := s.run(t, "verify", "--cmk", s.cmks[1], s.manifest, filepath.Join(s.dir, "copy")); r.code != exitDamaged || !strings.Contains(r.stdout, "/docs/file1 (") {
				t.Errorf("exit code %d\n%s", r.code, r.stdout)
			}
			s.ok(t, "verify", "--content", "--cmk", s.cmks[1], s.manifest, filepath.Join(s.dir, "copy"))
		})
	}
}

// TestOldManifest documents that an old volume with its old manifest passes: the time tells.
func TestOldManifest(t *testing.T) {
	s := newSignedVolume(t)
	shell(t, s.dir, "cp -a cipher old; cp -a cipher.manifest old.manifest")
	old, manifest := filepath.Join(s.dir, "old"), filepath.Join(s.dir, "old.manifest")
	shell(t, s.mount(t), "echo more >> docs/file1")
	s.umount(t)
	s.ok(t, "sign", "--cmk", s.cmks[0], s.cipher)
	when := strings.TrimSpace(strings.TrimPrefix(shell(t, s.dir, "grep ^time old.manifest"), "time "))
	if out := s.ok(t, "verify", "--public-key", s.public, manifest, old); !strings.Contains(out, when) {
		t.Errorf("%q does not tell the time %s", out, when)
	}
	s.refused(t, exitDamaged, []string{old, "not what was signed"}, "verify", "--public-key", s.public, s.manifest, old)
	s.refused(t, exitDamaged, []string{s.cipher, "not what was signed on " + when}, "verify", "--public-key", s.public, manifest, s.cipher)
}

// TestManifestTampered changes a manifest in every line: it is refused as a whole, and so is one with the signature of another.
func TestManifestTampered(t *testing.T) {
	s := newSignedVolume(t)
	text, err := os.ReadFile(s.manifest)
	must(t, err)
	if st, err := os.Stat(s.manifest); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	at, n := 0, 0
	changed := map[string][]byte{
		"empty":     nil,
		"cut":       text[:len(text)/2],
		"no end":    text[:len(text)-1],
		"more":      append(slices.Clone(text), '\n'),
		"twice":     append(slices.Clone(text), text...),
		"no body":   text[strings.Index(string(text), "kmsfs-signature-1"):],
		"no line":   append(slices.Clone(text[:strings.Index(string(text), "\nf ")]), text[strings.LastIndex(string(text), "\nf "):]...),
		"not ASCII": []byte(strings.Replace(string(text), " /f\n", " /\xff\n", 1)),
	}
	for line := range strings.Lines(string(text)) {
		if n++; n%3 == 1 || strings.HasPrefix(line, "time") || strings.HasPrefix(line, "end") {
			b := slices.Clone(text)
			b[at+len(line)/2] ^= 1
			changed[fmt.Sprintf("line %d", n)] = b
		}
		at += len(line)
	}
	// "cmk" and "version" of the signature are words only, where the key comes from a file.
	for name, b := range changed {
		must(t, os.WriteFile(s.manifest, b, 0o600))
		r := s.run(t, "verify", "--public-key", s.public, s.manifest, s.cipher)
		informal := len(b) == len(text) && (strings.Contains(name, "line") && onlyWords(string(text), string(b)))
		if name == "no body" && r.code == exitUsage {
			continue // it is that of a file now
		}
		if r.code != exitUnsigned && !informal || r.stdout != "" && !informal {
			t.Errorf("%s: exit code %d\n%s%s", name, r.code, r.stdout, r.stderr)
		}
	}
}

// onlyWords reports whether two manifests differ in what the signature says of its CMK only.
func onlyWords(a, b string) bool {
	la, lb := strings.Split(a, "\n"), strings.Split(b, "\n")
	if len(la) != len(lb) {
		return false
	}
	for i := range la {
		if la[i] != lb[i] && !strings.HasPrefix(la[i], "cmk ") && !strings.HasPrefix(la[i], "version ") {
			return false
		}
	}
	return true
}

// TestSignedPathsSealed has a manifest that tells no plaintext, and needs no CMK but the signing one.
func TestSignedPathsSealed(t *testing.T) {
	s := newSignedVolume(t)
	text, err := os.ReadFile(s.manifest)
	must(t, err)
	if !strings.Contains(string(text), " /docs/file1\n") || !strings.Contains(string(text), `/docs/deep/a\20b\0ac\5cd`) {
		t.Error("the manifest does not have the plaintext paths")
	}
	must(t, os.Remove(s.cmk))
	s.refused(t, exitCMK, []string{"--trust", "--sealed-paths"}, "sign", "--cmk", s.cmks[0], s.cipher)
	if again, err := os.ReadFile(s.manifest); err != nil || string(again) != string(text) {
		t.Errorf("the manifest has changed: %v", err)
	}
	s.ok(t, "sign", "--sealed-paths", "--cmk", s.cmks[0], s.cipher)
	text, err = os.ReadFile(s.manifest)
	must(t, err)
	if strings.Contains(string(text), "docs") || strings.Contains(string(text), "file1") {
		t.Error("the manifest has plaintext paths")
	}
	if d := s.verify(t, s.cipher); len(d) > 0 {
		t.Errorf("%+v", d)
	}
	entries, err := os.ReadDir(s.dir)
	must(t, err)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".kmsfs") {
			t.Errorf("%s is left behind", e.Name())
		}
	}
}

// TestSignLive refuses a volume that may change meanwhile, and a copy of one that was.
func TestSignLive(t *testing.T) {
	s := newSignedVolume(t)
	s.mount(t)
	for _, args := range [][]string{{"sign", "--cmk", s.cmks[0], s.cipher}, {"verify", "--cmk", s.cmks[0], s.manifest, s.cipher}} {
		s.refused(t, exitInUse, []string{s.cipher, "unmount it first"}, args...)
	}
	eventually(t, "a copy with writes in its journal is refused", func() bool { // there are none if a checkpoint came between
		shell(t, s.dir, "rm -rf live; echo more >> plain/docs/file1; cp -a cipher live")
		r := s.run(t, "verify", "--cmk", s.cmks[0], s.manifest, filepath.Join(s.dir, "live"))
		return r.code == exitInUse && strings.Contains(r.stderr, "mount it and unmount it")
	})
	s.umount(t)
	s.ok(t, "sign", "--cmk", s.cmks[0], s.cipher)
	s.ok(t, "verify", "--cmk", s.cmks[0], s.manifest, s.cipher)
}

// TestSignUnsound vouches for no damaged volume, and writes nothing.
func TestSignUnsound(t *testing.T) {
	s := newSignedVolume(t)
	file2 := filepath.Join(s.cipher, s.sealed(t, "/docs/file2"))
	out := filepath.Join(s.dir, "out")
	for name, edit := range map[string]func() (undo func()){
		"header": func() func() { flipByte(t, file2, 2); return func() { flipByte(t, file2, 2) } },
		"size": func() func() {
			must(t, os.Truncate(file2, 2000))
			return func() { shell(t, s.dir, "cp -a older/"+s.sealed(t, "/docs/file2")+" "+file2) }
		},
		"name": func() func() {
			must(t, os.Rename(file2, file2+"x"))
			return func() { must(t, os.Rename(file2+"x", file2)) }
		},
	} {
		undo := edit()
		s.refused(t, exitDamaged, []string{filepath.Dir(file2), "fsck"}, "sign", "--out", out, "--cmk", s.cmks[0], s.cipher)
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s: signed", name)
		}
		undo()
	}
	s.ok(t, "sign", "--out", out, "--cmk", s.cmks[0], s.cipher)
}
