package integration

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/kmsfs/kmsfs/"

// The SDKs of the clouds. Only the package that names one in allowed may import it.
const (
	alibabaSDK = "github.com/aliyun/alibaba-cloud-sdk-go/"
	huaweiSDK  = "github.com/huaweicloud/huaweicloud-sdk-go-v3/"
)

// allowed says what each package may import beyond the standard library, docs/design.md.
var allowed = map[string][]string{
	"keyring":           nil,
	"keyring/local":     {module + "keyring"},
	"keyring/creds":     nil,
	"keyring/cloud":     {module + "keyring", module + "keyring/creds", module + "signature", "golang.org/x/time/rate"},
	"keyring/alikms":    {module + "keyring", module + "keyring/cloud", module + "signature", alibabaSDK},
	"keyring/huaweikms": {module + "keyring", module + "keyring/cloud", module + "signature", huaweiSDK, "github.com/emmansun/gmsm/sm3"},
	"secrets":           nil,
	"keyring/failover":  {module + "keyring", module + "keyring/cloud"},
	"header":            {module + "keyring"},
	"signature":         {"github.com/emmansun/gmsm/sm2"},
	"manifest": {module + "blockcrypt", module + "cipherdir", module + "header", module + "names", module + "volume",
		"golang.org/x/sys/unix", "golang.org/x/sync/errgroup"},
	"blockcrypt": {"github.com/emmansun/gmsm/"},
	"names":      nil,
	"volume": {module + "blockcrypt", module + "header", module + "keyring", module + "names",
		"golang.org/x/sys/unix", "golang.org/x/sync/singleflight"},
	"cipherdir": {module + "volume", "golang.org/x/sys/unix"},
	"journal":   {"golang.org/x/sys/unix"},
	"rewrap":    {module + "cipherdir", module + "header", module + "journal", module + "keyring", module + "volume", "golang.org/x/sys/unix"},
	"reencrypt": {module + "blockcrypt", module + "cipherdir", module + "header", module + "journal", module + "volume",
		"golang.org/x/sys/unix", "golang.org/x/sync/errgroup"},
	"filecrypt": {module + "blockcrypt", module + "header", module + "keyring"},
	"sdkformat": {module + "keyring", "github.com/emmansun/gmsm/"},
	"control":   {"golang.org/x/sys/unix"},
	"fsck": {module + "blockcrypt", module + "cipherdir", module + "header", module + "keyring", module + "names", module + "volume",
		"golang.org/x/sys/unix", "golang.org/x/sync/errgroup"},
	"device": {"golang.org/x/sys/unix"},
	"fs": {module + "blockcrypt", module + "cipherdir", module + "device", module + "journal", module + "header", module + "keyring", module + "names", module + "volume",
		"github.com/hanwen/go-fuse/", "github.com/moby/sys/mountinfo", "golang.org/x/sys/unix"},
	"integration/emulator": {"github.com/emmansun/gmsm/"},
	"integration/kmsemu":   {module + "integration/emulator"},
}

func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "../...").Output()
	must(t, err)
	design := readAll(t, "../docs/design.md")
	checked := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		if !strings.Contains(design, "`"+name+"`") {
			t.Errorf("%s is not in the table of packages in docs/design.md", name)
		}
		may, known := allowed[name]
		for _, imported := range p.Imports {
			for _, sdk := range []string{alibabaSDK, huaweiSDK} {
				if strings.HasPrefix(imported, sdk) && !slices.Contains(may, sdk) {
					t.Errorf("%s imports %s", p.ImportPath, imported)
				}
			}
		}
		if !known {
			continue
		}
		checked++
		for _, imported := range p.Imports {
			if first, _, _ := strings.Cut(imported, "/"); !strings.Contains(first, ".") {
				continue // standard library
			}
			if !slices.ContainsFunc(may, func(m string) bool {
				return imported == m || strings.HasSuffix(m, "/") && strings.HasPrefix(imported, m)
			}) {
				t.Errorf("%s imports %s", p.ImportPath, imported)
			}
		}
	}
	if checked != len(allowed) {
		t.Errorf("%d packages checked, want %d", checked, len(allowed))
	}
}
