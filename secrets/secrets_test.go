package secrets

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for s, want := range map[string]Ref{
		"csms://db":                        {Scheme: CSMS, Name: "db"},
		"csms://db-1_x.y#password@v2":      {CSMS, "db-1_x.y", "password", "v2"},
		"csms://db@v2":                     {CSMS, "db", "", "v2"},
		"alibaba-secret://app/db+x=1":      {Scheme: Alibaba, Name: "app/db+x=1"},
		"alibaba-secret://a@b@ACSPrevious": {Alibaba, "a@b", "", "ACSPrevious"},
		"alibaba-secret://a@b#f":           {Alibaba, "a@b", "f", ""},
		"alibaba-secret://a#f@x@v1":        {Alibaba, "a", "f@x", "v1"},
		"csms://a#ein Feld":                {CSMS, "a", "ein Feld", ""},
	} {
		got, err := Parse(s)
		if err != nil || got != want || got.String() != s {
			t.Errorf("%s: %+v, %v, again %s", s, got, err, got)
		}
	}
	for _, s := range []string{
		"", "db", "csms:db", "CSMS://db", "kms://db", "csms://", "csms://#f", "csms://@v1", "csms://a#", "csms://a@", "csms://a#@v1", "csms://a#f@",
		"csms://..", "csms://.", "csms://-a", "csms://a/b", "csms://a/../b", "csms://a b", "csms://a\n", "csms://ä", "csms://a@..", "csms://a@v/1", "csms://a#f\x00",
		"alibaba-secret:///a", "alibaba-secret://a?b", "csms://" + strings.Repeat("a", 65), "csms://a@" + strings.Repeat("v", 65), "csms://a#" + strings.Repeat("f", 129),
	} {
		if r, err := Parse(s); !errors.Is(err, ErrRef) {
			t.Errorf("%q: %+v, %v, want ErrRef", s, r, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("csms://name#field@version")
	f.Add("alibaba-secret://a/b@c@d")
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := Parse(s); err == nil && r.String() != s {
			t.Errorf("%q came back as %q", s, r)
		}
	})
}

func TestField(t *testing.T) {
	object := Value(`{"ak":"an access key","n":12.50,"yes":true,"none":null,"list":["x"],"object":{},"empty":"","esc":"a\"\u00e9"}`)
	for field, want := range map[string]string{"": string(object), "ak": "an access key", "n": "12.50", "yes": "true", "empty": "", "esc": `a"é`} {
		if got, err := object.Field(field); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", field, []byte(got), err)
		}
	}
	for _, field := range []string{"none", "list", "object", "AK", "missing"} {
		if _, err := object.Field(field); !errors.Is(err, ErrValue) || strings.Contains(err.Error(), "access") {
			t.Errorf("%q: %v, want ErrValue", field, err)
		}
	}
	for _, text := range []string{"a secret text", `["ak"]`, `{"ak":"cut`, `"ak"`, ""} {
		if _, err := Value(text).Field("ak"); !errors.Is(err, ErrValue) || strings.Contains(err.Error(), "secret text") {
			t.Errorf("%q: %v, want ErrValue", text, err)
		}
	}
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{"x": "x", "x\n": "x", "x\r\n": "x", " x ü ": " x ü "} {
		if got, err := Value(in).Text(); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "\n", "a\nb", "a\n\n", "\xff", "a\x00"} {
		if _, err := Value(in).Text(); !errors.Is(err, ErrValue) {
			t.Errorf("%q: %v, want ErrValue", in, err)
		}
	}
}

func TestValueHides(t *testing.T) {
	v := Value("canary")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, shown := range []any{v, &v, struct{ V Value }{v}, []Value{v}} {
			if s := fmt.Sprintf(verb, shown); strings.Contains(s, "canary") || strings.Contains(s, "63616e617279") || strings.Contains(s, "99 97 110") {
				t.Errorf("%s of %T: %s", verb, shown, s)
			}
		}
	}
	if s := v.LogValue().String(); strings.Contains(s, "canary") {
		t.Error(s)
	}
	if v.Wipe(); string(v) == "canary" {
		t.Error("not wiped")
	}
}
