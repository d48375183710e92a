package main

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
)

func FuzzEnvelope(f *testing.F) {
	e := envelope{Version: 1, CMK: "local:00", Context: keyring.EncryptionContext{"a": "<&>\n"}, Data: []byte{1}}
	b, err := e.marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(bytes.ReplaceAll(b, []byte("\n"), nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseEnvelope(b)
		if err != nil {
			if !errors.Is(err, errEnvelope) {
				t.Errorf("%v, want errEnvelope", err)
			}
			return
		}
		text, err := e.marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseEnvelope(text)
		if err != nil || !reflect.DeepEqual(again, e) && len(e.Context) > 0 {
			t.Errorf("%+v came back as %+v, %v", e, again, err)
		}
	})
}
