package emulator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
)

const soReusePort = 15 // SO_REUSEPORT of Linux, which package syscall lacks on some architectures

// An Endpoint is one region on an address of its own.
type Endpoint struct {
	URL string // http://HOST:PORT, or https

	provider, region string
	handler          http.Handler
	tls              *tls.Config // nil for plain HTTP
	address          string
	hold             *os.File // a socket bound to the address that never listens: keeps the port ours while connections are refused

	mu        sync.Mutex
	idle      sync.Cond    // its lock is mu: answering became 0
	answering int          // requests; guarded by mu
	server    *http.Server // nil while connections are refused; guarded by mu
	closed    bool         // guarded by mu
}

// Listen serves a region on a loopback address of IPv4, HOST:PORT, of which port 0 is any free one. Provider and region are as for [Emulator.Handler].
func (e *Emulator) Listen(provider, region, address string) (*Endpoint, error) {
	tcp, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return nil, fmt.Errorf("emulator: listen on %s: %w", address, err)
	}
	if !tcp.IP.IsLoopback() {
		return nil, fmt.Errorf("emulator: listen on %s: not a loopback address", address)
	}
	hold, port, err := holdPort(tcp)
	if err != nil {
		return nil, fmt.Errorf("emulator: listen on %s: %w", address, err)
	}
	p := &Endpoint{provider: provider, region: region, hold: hold, tls: e.tls, address: net.JoinHostPort(tcp.IP.String(), itoa(port))}
	p.URL = "http://" + p.address
	if p.tls != nil {
		p.URL = "https://" + p.address
	}
	p.idle.L = &p.mu
	handler := e.Handler(provider, region)
	p.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !p.begin() {
			panic(http.ErrAbortHandler)
		}
		defer p.end()
		handler.ServeHTTP(w, r)
	})
	e.script.Lock()
	defer e.script.Unlock()
	e.mu.Lock()
	closed := e.closed
	e.mu.Unlock()
	if closed {
		return nil, errors.Join(errors.New("emulator: closed"), p.Close())
	}
	if err := p.refuse(e.refuses(provider, region)); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.endpoints = append(e.endpoints, p)
	return p, nil
}

// holdPort binds a socket to an address without listening, and returns the port.
func holdPort(tcp *net.TCPAddr) (*os.File, int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	f := os.NewFile(uintptr(fd), "port")
	address := &syscall.SockaddrInet4{Port: tcp.Port}
	copy(address.Addr[:], tcp.IP.To4())
	err = reusePort(fd)
	if err == nil {
		err = syscall.Bind(fd, address)
	}
	var bound syscall.Sockaddr
	if err == nil {
		bound, err = syscall.Getsockname(fd)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, bound.(*syscall.SockaddrInet4).Port, nil
}

func reusePort(fd int) error {
	return errors.Join(syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1), syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, soReusePort, 1))
}

// refuse lets the endpoint refuse connections, and cuts those there are, or lets it accept them again.
func (p *Endpoint) refuse(refusing bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || refusing == (p.server == nil) {
		return nil
	}
	if refusing {
		err := p.server.Close()
		p.server = nil
		return err
	}
	var failed error
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return errors.Join(c.Control(func(fd uintptr) { failed = reusePort(int(fd)) }), failed)
	}}
	l, err := config.Listen(context.Background(), "tcp4", p.address)
	if err != nil {
		return fmt.Errorf("emulator: listen on %s: %w", p.address, err)
	}
	if p.tls != nil {
		l = tls.NewListener(l, p.tls)
	}
	server := &http.Server{Handler: p.handler, ErrorLog: log.New(io.Discard, "", 0)}
	p.server = server
	go server.Serve(l) // ends with server.Close
	return nil
}

// begin and end enclose the answer to a request. None begins after Close.
func (p *Endpoint) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.answering++
	return true
}

func (p *Endpoint) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answering--; p.answering == 0 {
		p.idle.Broadcast()
	}
}

// Close stops serving and returns when no request is being answered any more. A request that hangs ends.
func (p *Endpoint) Close() error {
	err := p.refuse(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	for p.answering > 0 {
		p.idle.Wait()
	}
	return errors.Join(err, p.hold.Close())
}
