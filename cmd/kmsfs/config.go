package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/header"
)

// A config is the configuration file: what flags can say, spelled as they are. A volume's record has the same form.
type config struct {
	CMK            []string          `toml:"cmk,omitempty"`
	Endpoint       []string          `toml:"endpoint,omitempty"`
	Options        []string          `toml:"options,omitempty"` // as after -o
	Log            string            `toml:"log,omitempty"`
	Foreground     bool              `toml:"foreground,omitempty"`
	Context        map[string]string `toml:"context,omitempty"`
	Algorithm      string            `toml:"algorithm,omitempty"`
	SegmentSize    int               `toml:"segment-size,omitempty"`
	PlaintextNames bool              `toml:"plaintext-names,omitempty"`
}

func configFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Usage: "read settings from `FILE` (TOML)", DefaultText: "kmsfs.toml in the configuration directory"}
}

func endpointFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "endpoint", Usage: "reach a KMS at `PROVIDER/REGION=URL` (repeatable)", EnvVars: []string{"KMSFS_ENDPOINTS"}}
}

// configDir is where the configuration and the records of volumes are.
func configDir() (string, error) {
	if dir := os.Getenv("KMSFS_CONFIG_DIR"); dir != "" {
		return dir, nil
	}
	if os.Geteuid() == 0 {
		return "/etc/kmsfs", nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("no configuration directory: %w; set KMSFS_CONFIG_DIR", err)
	}
	return filepath.Join(dir, "kmsfs"), nil
}

// loadConfig reads the configuration file; without --config it need not exist.
func loadConfig(path string) (config, error) {
	if path != "" {
		return readTOML(path)
	}
	dir, err := configDir()
	if err != nil {
		return config{}, err
	}
	c, err := readTOML(filepath.Join(dir, "kmsfs.toml"))
	if errors.Is(err, os.ErrNotExist) {
		return config{}, nil
	}
	return c, err
}

func readTOML(path string) (c config, err error) {
	f, err := os.Open(path)
	if err != nil {
		return c, err
	}
	defer f.Close()
	if err := toml.NewDecoder(f).DisallowUnknownFields().Decode(&c); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			return c, usagef("%s: unknown setting:\n%s", path, strict.String())
		}
		return c, usagef("%s: %w", path, err)
	}
	return c, nil
}

func recordPath(id header.ID) (string, error) {
	dir, err := configDir()
	return filepath.Join(dir, "volumes", id.String()+".toml"), err
}

// record returns the CMKs that this machine has noted for a volume.
func record(id header.ID) ([]string, error) {
	path, err := recordPath(id)
	if err != nil {
		return nil, err
	}
	c, err := readTOML(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return c.CMK, err
}

// writeRecord notes the trusted CMKs of a volume, atomically.
func writeRecord(id header.ID, cmks []string) error {
	path, err := recordPath(id)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	b, err := toml.Marshal(config{CMK: cmks})
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".record-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// checkEndpoints refuses what is no PROVIDER/REGION=URL, and plain http beyond the machine itself.
func checkEndpoints(endpoints []string) error {
	for _, e := range strings.Split(strings.Join(endpoints, ","), ",") {
		if e == "" {
			continue
		}
		where, url, ok := strings.Cut(e, "=")
		provider, region, ok2 := strings.Cut(where, "/")
		if !ok || !ok2 || region == "" || provider != "alibaba" && provider != "huawei" {
			return usagef("endpoint %q is not PROVIDER/REGION=URL with provider alibaba or huawei", e)
		}
		if !strings.HasPrefix(url, "https://") && !loopbackURL(url) {
			return usagef("endpoint %q: the URL must start with https:// (http:// only to the loopback)", e)
		}
	}
	return nil
}
