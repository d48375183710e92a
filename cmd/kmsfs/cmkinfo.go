package main

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/volume"
)

// info returns what wrapping needs to know of those of cmks that have wrapped or that a volume knew, for [volume.Volume.SetCMKInfo]; nil if that is
// nothing. It is a JSON object of [cloud.KeyInfo] by URI.
func (s *keyrings) info(cmks []string) []byte {
	all := make(map[string]*cloud.KeyInfo)
	for _, cmk := range cmks {
		info := s.known[cmk]
		if k := s.opened[cmk]; k != nil && k.Known() != nil {
			info = k.Known()
		}
		if info != nil {
			all[cmk] = info
		}
	}
	if len(all) == 0 {
		return nil
	}
	b, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return append(b, '\n')
}

// onlyRSA reports whether every one of cmks, which have wrapped, is an RSA CMK.
func (s *keyrings) onlyRSA(cmks []string) bool {
	return !slices.ContainsFunc(cmks, func(cmk string) bool { return !s.isRSA(cmk) })
}

// isRSA reports whether a CMK, which has wrapped, is an RSA one.
func (s *keyrings) isRSA(cmk string) bool {
	k := s.opened[cmk]
	return k != nil && k.Known() != nil && strings.HasPrefix(k.Known().Spec, "RSA_")
}

// learn takes over what an unlocked volume knows of its CMKs, so that keyrings that are opened from now on need not ask. What cannot be read is
// asked again.
func (s *keyrings) learn(v *volume.Volume) {
	b, err := v.CMKInfo()
	if err == nil && b == nil {
		return
	}
	var known map[string]*cloud.KeyInfo
	if err == nil {
		err = json.Unmarshal(b, &known)
	}
	if err != nil {
		s.log().Warn("what the volume knows of its CMKs is asked again", "err", err)
		return
	}
	maps.DeleteFunc(known, func(_ string, info *cloud.KeyInfo) bool { return info == nil || !info.Wraps() })
	maps.Copy(s.known, known)
}
