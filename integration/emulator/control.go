package emulator

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
)

// control serves /emulator/ on every endpoint, without a signature:
//
//	GET  calls      the counts              DELETE calls   forgets them and the requests
//	GET  requests   everything that arrived, without the bodies
//	GET  cmks       the CMKs                POST cmks      {"cmk": URI, "state": STATE} changes one
//	GET  faults     the script              PUT faults     [FAULT, …] replaces it     POST faults   FAULT is put first
//	DELETE faults   ends all faults
//	POST expire     ends the life of all temporary credentials
func (e *Emulator) control(w http.ResponseWriter, r *http.Request, body []byte) {
	var answer any = map[string]any{}
	var err error
	switch r.Method + " " + strings.TrimPrefix(r.URL.Path, "/emulator/") {
	case "GET calls":
		answer = e.Calls()
	case "DELETE calls":
		e.ResetCalls()
	case "GET requests":
		answer = e.Requests()
	case "GET cmks":
		answer = e.CMKs()
	case "POST cmks":
		var change CMK
		if err = unmarshalStrict(body, &change); err == nil {
			err = e.SetState(change.URI, change.State)
		}
	case "GET faults":
		answer = e.Faults()
	case "PUT faults":
		var faults []Fault
		if faults, err = ReadFaults(bytes.NewReader(body)); err == nil {
			err = e.SetFaults(faults...)
		}
	case "POST faults":
		var f Fault
		if err = unmarshalStrict(body, &f); err == nil {
			err = e.SetFaults(append([]Fault{f}, e.Faults()...)...)
		}
	case "DELETE faults":
		err = e.SetFaults()
	case "POST expire":
		e.ExpireCredentials("")
	default:
		if r.URL.Path != redirected {
			http.NotFound(w, r)
			return
		}
	}
	if err != nil {
		write(w, http.StatusBadRequest, err.Error()+"\n", false)
		return
	}
	write(w, http.StatusOK, answer, false)
}

// unmarshalStrict reads one JSON value, in which no field is unknown and which nothing follows.
func unmarshalStrict(b []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more than one JSON value")
	}
	return nil
}
