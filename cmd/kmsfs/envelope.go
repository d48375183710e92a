package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/kmsfs/kmsfs/keyring"
)

// maxEnvelope bounds an envelope, in bytes. The context takes most of it.
const maxEnvelope = 128 << 10

// errEnvelope says that a file is not one of kmsfs data encrypt.
var errEnvelope = errors.New("not data that kmsfs data encrypt has made")

// An envelope is encrypted data as docs/secrets.md describes it: all that decrypt needs to know, but whom to trust.
type envelope struct {
	Version int                       `json:"kmsfs-data"` // 1
	CMK     string                    `json:"cmk"`        // as headers name it
	Context keyring.EncryptionContext `json:"context,omitempty"`
	Data    []byte                    `json:"data"` // made by the CMK
}

// marshal returns the text of an envelope.
func (e envelope) marshal() ([]byte, error) {
	var b bytes.Buffer
	err := printJSON(&b, e)
	return b.Bytes(), err
}

// parseEnvelope reads the text of an envelope, which nobody has authenticated. The error wraps [errEnvelope].
func parseEnvelope(b []byte) (e envelope, err error) {
	if len(b) > maxEnvelope {
		return e, fmt.Errorf("%w: it is longer than %d bytes", errEnvelope, maxEnvelope)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if dec.Decode(&e) != nil {
		return envelope{}, errEnvelope
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return envelope{}, fmt.Errorf("%w: something follows it", errEnvelope)
	}
	switch _, err := e.Context.AppendTo(nil); {
	case e.Version != 1:
		return envelope{}, fmt.Errorf("%w: or by a newer kmsfs, in version %d", errEnvelope, e.Version)
	case err != nil:
		return envelope{}, fmt.Errorf("%w: %w", errEnvelope, err)
	case e.CMK == "" || len(e.Data) == 0:
		return envelope{}, fmt.Errorf("%w: it names no CMK, or has no data", errEnvelope)
	}
	return e, nil
}
