// Command kmsemu answers as the KMS of Alibaba Cloud and of Huawei Cloud would, each region on an address of its own, until it is interrupted.
//
// It prints, as lines for a shell, the environment in which kmsfs finds it, and the CMKs it holds. KMSEMU is an address that no fault closes; below it,
// as on every address, /emulator/ tells of calls and changes what goes wrong: see package emulator. One region is gone after
//
//	curl -X PUT $KMSEMU/emulator/faults -d '[{"fault": "refuse", "provider": "alibaba", "region": "cn-hangzhou"}]'
//
// and back after curl -X DELETE $KMSEMU/emulator/faults. Two programs with one seed hold the same keys.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

// defaultCMKs are two regions of each cloud.
var defaultCMKs = []string{
	"acs:kms:cn-hangzhou:1000000000000001:key/key-hzz00000000000000000000",
	"acs:kms:ap-southeast-1:1000000000000001:key/key-sgp00000000000000000000",
	"huawei:kms:cn-north-4:0000000000000000000000000000cafe:key/11111111-1111-4111-8111-111111111111",
	"huawei:kms:ap-southeast-3:0000000000000000000000000000beef:key/22222222-2222-4222-8222-222222222222",
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "kmsemu: %v\n", err)
		os.Exit(1)
	}
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// run serves until ctx is done.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("kmsemu", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var cmks, listen list
	flags.Var(&cmks, "cmk", "a CMK to hold, `URI[,SPEC]`; SPEC is AES_256, SM4, RSA_2048, RSA_3072, RSA_4096, or EC_P256 or SM2 to sign; may be repeated (default two of each cloud)")
	flags.Var(&listen, "listen", "where a region listens, `PROVIDER/REGION=HOST:PORT`; may be repeated (default 127.0.0.1 and a free port for each region of a CMK)")
	faults := flags.String("faults", "", "a `FILE` with a script of faults, in JSON")
	control := flags.String("control", "127.0.0.1:0", "`HOST:PORT` of the address that no fault closes")
	certificate := flags.String("tls-cert", "", "a `FILE` with the certificate to serve over TLS with; needs --tls-key")
	private := flags.String("tls-key", "", "the `FILE` with the private key of the certificate")
	seed := flags.String("seed", "", "what all key material follows from (default kmsfs)")
	life := flags.Duration("credential-life", time.Hour, "of the credentials that the metadata services issue")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if len(cmks) == 0 {
		cmks = defaultCMKs
	}
	o := emulator.Options{Seed: *seed, Life: *life}
	for _, c := range cmks {
		uri, spec, _ := strings.Cut(c, ",")
		o.CMKs = append(o.CMKs, emulator.CMK{URI: uri, Spec: spec})
	}
	if *faults != "" {
		f, err := os.Open(*faults)
		if err != nil {
			return err
		}
		defer f.Close()
		if o.Faults, err = emulator.ReadFaults(f); err != nil {
			return err
		}
	}
	if *certificate != "" || *private != "" {
		pair, err := tls.LoadX509KeyPair(*certificate, *private)
		if err != nil {
			return fmt.Errorf("--tls-cert and --tls-key: %w", err)
		}
		o.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	}
	e, err := emulator.New(o)
	if err != nil {
		return err
	}
	defer e.Close()
	for _, l := range addresses(listen, cmks) {
		region, address, ok := strings.Cut(l, "=")
		provider, region, ok2 := strings.Cut(region, "/")
		if !ok || !ok2 || provider != emulator.Alibaba && provider != emulator.Huawei {
			return fmt.Errorf("--listen %s is not PROVIDER/REGION=HOST:PORT, PROVIDER being alibaba or huawei", l)
		}
		if _, err := e.Listen(provider, region, address); err != nil {
			return err
		}
	}
	all, err := e.Listen("", "", *control)
	if err != nil {
		return err
	}
	for _, v := range append(e.Environ(), "KMSEMU="+all.URL) {
		fmt.Fprintf(stdout, "export %s\n", v)
	}
	for _, c := range e.CMKs() {
		fmt.Fprintf(stdout, "# --cmk %s (%s)\n", c.URI, c.Spec)
	}
	fmt.Fprintln(stdout, "# ready")
	<-ctx.Done()
	return nil
}

// addresses adds to the regions that --listen names those that have a CMK but no address.
func addresses(listen, cmks []string) []string {
	for _, c := range cmks {
		fields := strings.Split(c, ":")
		if len(fields) < 3 {
			continue // it has been refused already
		}
		region := emulator.Alibaba + "/" + fields[2]
		if fields[0] == emulator.Huawei {
			region = emulator.Huawei + "/" + fields[2]
		}
		if !slices.ContainsFunc(listen, func(l string) bool { return strings.HasPrefix(l, region+"=") }) {
			listen = append(listen, region+"=127.0.0.1:0")
		}
	}
	return listen
}
