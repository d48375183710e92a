package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// maxConfig bounds the size of a configuration file, in bytes.
const maxConfig = 1 << 20

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
	DataKey        string            `toml:"data-key,omitempty"`
	Alibaba        cloudSettings     `toml:"alibaba,omitempty"`
	Huawei         cloudSettings     `toml:"huawei,omitempty"`
	Secrets        secretSettings    `toml:"secrets,omitempty"`

	// Of a record alone: the newest data key of new files that this machine has seen, and the one under which it has begun to rewrite all files.
	Generation uint64 `toml:"generation,omitempty"`
	Begun      uint64 `toml:"re-encryption,omitempty"`

	revealed map[string]string // values that were fetched, and the references to them
}

func configFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Usage: "read settings from `FILE` (TOML)", DefaultText: "kmsfs.toml in the configuration directory"}
}

func endpointFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "endpoint", Usage: "reach a KMS at `PROVIDER/REGION=URL` (repeatable); more are in $KMSFS_ENDPOINTS"}
}

func cmkFlag(usage string) cli.Flag {
	return &cli.StringSliceFlag{Name: "cmk", Usage: usage}
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
		return "", usagef("no configuration directory: %w; set KMSFS_CONFIG_DIR", err)
	}
	return filepath.Join(dir, "kmsfs"), nil
}

// loadConfig reads the configuration file. The one that is not named, in the configuration directory, need not exist.
func loadConfig(path string) (c config, err error) {
	named := path != ""
	if !named {
		dir, err := configDir()
		if err != nil {
			return config{}, err
		}
		path = filepath.Join(dir, "kmsfs.toml")
	}
	c, err = readTOML(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && named:
		return c, usagef("--config: %w", err)
	case errors.Is(err, os.ErrNotExist):
		return config{}, nil
	case err == nil && (c.Generation != 0 || c.Begun != 0):
		return c, usagef("%s: generation and re-encryption are settings of the record of a volume", path)
	}
	return c, err
}

// readTOML reads a configuration file, strictly: a setting that is misspelt must not be lost. Whoever can write the file says which CMKs are
// trusted, so it must not be open to others.
func readTOML(path string) (c config, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // or a FIFO would block
	if err != nil {
		return c, err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return c, err
	case !st.Mode().IsRegular() || st.Size() > maxConfig:
		return c, usagef("%s is not a configuration file: not a regular file of at most %d bytes", path, maxConfig)
	case st.Mode().Perm()&0o022 != 0:
		return c, usagef("%s has mode %04o: others could change which CMKs are trusted; run: chmod go-w %s", path, st.Mode().Perm(), path)
	}
	err = toml.NewDecoder(io.LimitReader(f, maxConfig)).DisallowUnknownFields().Decode(&c)
	var strict *toml.StrictMissingError
	var syntax *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		return c, usagef("%s: unknown setting:\n%s", path, strict.String())
	case errors.As(err, &syntax):
		line, column := syntax.Position()
		return c, usagef("%s:%d:%d: %w", path, line, column, err)
	case err != nil:
		return c, usagef("%s: %w", path, err)
	}
	return c, nil
}
