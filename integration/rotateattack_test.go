package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRotateTampered takes away, damages, plants and puts back the data key of new files. A mount never gives new files an older one without a word.
func TestRotateTampered(t *testing.T) {
	v := newVolume(t)
	must(t, os.WriteFile(filepath.Join(v.mount(t), "old"), []byte("old"), 0o644))
	v.umount(t)
	shell(t, v.dir, "cp -a cipher/.kmsfs never")
	v.rotate(t)
	shell(t, v.dir, "cp -a cipher/.kmsfs first")
	v.rotate(t)
	must(t, os.WriteFile(filepath.Join(v.mount(t), "new"), []byte("new"), 0o644))
	v.umount(t)
	if noted := v.record(t); !strings.Contains(noted, "generation = 2") {
		t.Errorf("the machine has noted\n%s", noted)
	}
	shell(t, v.dir, "cp -a cipher/.kmsfs good; cp -a config config.good")
	flip := func(at int, file string) string { // one byte alone might be right
		return fmt.Sprintf(`printf '\377\377\377\377\377\377\377\377' | dd bs=1 seek=%d conv=notrunc status=none of=%s;`, at, file)
	}
	for name, tt := range map[string]struct {
		edit, says string
		code       int
	}{
		"both missing":       {`rm current current.copy`, "copy are missing", 4},
		"EDKs damaged":       {flip(150, "current") + flip(150, "current.copy"), "current", 6},
		"MACs damaged":       {flip(260, "current") + flip(260, "current.copy"), "does not authenticate", 4},
		"older key":          {`cp ../../first/current ../../first/current.copy .`, "generation 1", 4},
		"all put back":       {`cp ../../first/current* ../../first/volume* .`, "this machine has seen generation 2", 4},
		"as before rotation": {`rm current current.copy; cp ../../never/volume* .`, "this machine has seen generation 2", 4},
		"something else":     {`cp volume current; cp volume current.copy`, "something else", 4},
	} {
		shell(t, v.dir, "rm -r cipher/.kmsfs config; cp -a good cipher/.kmsfs; cp -a config.good config; cd cipher/.kmsfs; "+tt.edit)
		v.refused(t, tt.code, []string{tt.says, "mount -o ro", "kmsfs rotate"}, "mount", v.cipher, v.plain)
		v.refused(t, tt.code, []string{tt.says, "mount -o ro", "kmsfs rotate"}, "rewrap", v.cipher)
		v.fsck(t, 4, "--repair")
		v.mount(t, "ro")
		if got := shell(t, v.plain, "cat old new"); got != "oldnew" {
			t.Errorf("%s: read %q", name, got)
		}
		if st := v.status(t).DataKey; st.Trouble == "" || st.ID != "" {
			t.Errorf("%s: %+v", name, st)
		}
		v.umount(t)
		if r := v.rotate(t); r.Generation != 3 {
			t.Errorf("%s: rotated to %+v", name, r)
		}
		v.fsck(t, 0)
		must(t, os.WriteFile(filepath.Join(v.mount(t), "newer"), []byte("newer"), 0o644))
		if got := shell(t, v.plain, "cat old new newer; rm newer"); got != "oldnewnewer" {
			t.Errorf("%s: read %q", name, got)
		}
		v.umount(t)
	}
	// One of the two is enough, and the other is mended from it.
	for _, edit := range []string{"rm current", "rm current.copy", flip(150, "current"), flip(260, "current.copy"), "cp ../../first/current .", "cp ../../first/current.copy ."} {
		shell(t, v.dir, "rm -r cipher/.kmsfs config; cp -a good cipher/.kmsfs; cp -a config.good config; cd cipher/.kmsfs; "+edit)
		v.mount(t)
		if st := v.status(t).DataKey; st.Generation != 2 {
			t.Errorf("%s: %+v", edit, st)
		}
		v.umount(t)
		if r := v.fsck(t, 10, "--repair"); len(r.Faults) != 1 || r.Faults[0].Kind != "current data key" {
			t.Errorf("%s: %+v", edit, r.Faults)
		}
		v.fsck(t, 0)
	}
	// Whoever has not seen the rotation cannot tell that all of it was undone: docs/design.md.
	shell(t, v.dir, "rm -r cipher/.kmsfs config; cp -a never cipher/.kmsfs")
	v.mount(t, "cmk=local:"+v.cmk)
	if st := v.status(t).DataKey; st.Generation != 0 {
		t.Errorf("%+v", st)
	}
}
