package main

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/secrets"
)

// secretSettings are the table of secrets in the configuration file.
type secretSettings struct {
	Interval string `toml:"interval,omitempty"` // between two readings of an access key that is made of secrets
}

// every is the interval of settings that have been checked.
func (s secretSettings) every() time.Duration {
	d, err := time.ParseDuration(s.Interval)
	if err != nil {
		return pollInterval
	}
	return d
}

// resolved returns the configuration with every path made absolute, and every text that refers to a secret replaced by what it stands for. The access keys of the clouds are left for when
// they are needed, and are then read again and again; more are endpoints of mount options.
func (conf config) resolved(c *cli.Context, more []string) (config, error) {
	if err := conf.checkSecrets(); err != nil {
		return conf, err
	}
	conf.Alibaba.Credentials, conf.Huawei.Credentials = absolute(conf.Alibaba.Credentials), absolute(conf.Huawei.Credentials)
	var store *secretStore
	err := eachText(reflect.ValueOf(&conf).Elem(), "", func(setting, text string) (string, error) {
		if !secrets.IsRef(text) || strings.HasPrefix(setting, "alibaba.") || strings.HasPrefix(setting, "huawei.") {
			return text, nil
		}
		if strings.HasPrefix(setting, "context.") {
			return "", usagef("setting %s cannot be a secret: headers store it in clear", setting)
		}
		if store == nil {
			known := conf
			known.Endpoint = nil
			for _, e := range conf.Endpoint {
				if !secrets.IsRef(e) {
					known.Endpoint = append(known.Endpoint, e)
				}
			}
			endpoints, err := allEndpoints(c, more, known)
			if err != nil {
				return "", err
			}
			store = newSecretStore(conf, endpoints, silent)
		}
		value, err := store.text(c.Context, setting, text)
		if err != nil {
			return "", hinted(err)
		}
		if conf.revealed == nil {
			conf.revealed = make(map[string]string)
		}
		conf.revealed[value] = text
		return value, nil
	})
	return conf, err
}

// checkSecrets checks what can be checked of secrets before any is read.
func (conf config) checkSecrets() error {
	if i := conf.Secrets.Interval; i != "" {
		if d, err := time.ParseDuration(i); err != nil || d < time.Second {
			return usagef("setting secrets.interval: %q is not a duration of at least 1s, such as 10m", i)
		}
	}
	for table, set := range map[string]cloudSettings{"alibaba": conf.Alibaba, "huawei": conf.Huawei} {
		for name, value := range map[string]string{"credentials": set.Credentials, "metadata": set.Metadata, "role": set.Role, "region": set.Region, "project": set.Project} {
			if secrets.IsRef(value) {
				return usagef("setting %s.%s cannot be a secret: it says how secrets are read", table, name)
			}
		}
		for name, value := range map[string]string{"access-key": set.AccessKey, "secret-key": set.SecretKey, "security-token": set.SecurityToken} {
			switch {
			case value == "" && name != "security-token" && set.AccessKey+set.SecretKey+set.SecurityToken != "":
				return usagef("setting %s.%s is missing: an access key has two halves", table, name)
			case value != "" && name != "access-key" && !secrets.IsRef(value):
				return usagef("setting %s.%s must be a secret, such as csms://name#field; to have it in clear, name a file of mode 0600 with credentials=", table, name)
			}
			if secrets.IsRef(value) {
				if _, err := secrets.Parse(value); err != nil {
					return usagef("setting %s.%s: %w", table, name, err)
				}
			}
		}
	}
	return nil
}

// eachText replaces every text of a configuration, whose names the tags tell, by what replace makes of it.
func eachText(v reflect.Value, name string, replace func(setting, text string) (string, error)) error {
	switch v.Kind() {
	case reflect.String:
		text, err := replace(name, v.String())
		if err == nil {
			v.SetString(text)
		}
		return err
	case reflect.Slice:
		for i := range v.Len() {
			if err := eachText(v.Index(i), fmt.Sprintf("%s[%d]", name, i), replace); err != nil {
				return err
			}
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			text := reflect.New(v.Type().Elem()).Elem()
			text.Set(v.MapIndex(k))
			if err := eachText(text, name+"."+k.String(), replace); err != nil {
				return err
			}
			v.SetMapIndex(k, text)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("toml"), ",")
			if tag == "" {
				continue
			}
			if name != "" {
				tag = name + "." + tag
			}
			if err := eachText(v.Field(i), tag, replace); err != nil {
				return err
			}
		}
	}
	return nil
}

// hide puts references in the place of the values that they stand for, in an error about them.
func (conf config) hide(err error) error {
	if err == nil || len(conf.revealed) == 0 {
		return err
	}
	text := err.Error()
	longer := func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), strings.Compare(a, b)) }
	for _, value := range slices.SortedFunc(maps.Keys(conf.revealed), longer) { // it may have a shorter one in it
		text = strings.ReplaceAll(text, value, conf.revealed[value])
	}
	return fail(exitCode(err), "%s", text)
}
