package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	xdscredentials "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"
)

// program answers every method.
type program struct {
	lock  sync.Mutex
	calls map[string]int
}

// counted notes a call and returns how many there were, by method, as JSON.
func (p *program) counted(method string) string {
	p.lock.Lock()
	defer p.lock.Unlock()
	p.calls[method]++
	said, _ := json.Marshal(p.calls)
	return string(said)
}

// at is what answers at a port.
func (p *program) at(port string) grpc.StreamHandler {
	return func(_ any, stream grpc.ServerStream) error {
		var request []byte
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		method, _ := grpc.MethodFromServerStream(stream)
		calls := p.counted(method)
		said, _ := metadata.FromIncomingContext(stream.Context())
		if first(said, "x-do") == "fail" || first(said, "x-fail") == port {
			return status.Error(codes.Unavailable, "as it was told")
		}
		if first(said, "x-do") == "slow" {
			<-stream.Context().Done()
			return status.FromContextError(stream.Context().Err()).Err()
		}
		if at := first(said, "x-hold-at"); at != "" && at != port {
			said.Delete("x-hold")
		}
		if hold, err := strconv.ParseFloat(first(said, "x-hold"), 64); err == nil {
			time.Sleep(time.Duration(hold * float64(time.Second)))
		}
		stream.SetTrailer(metadata.Pairs("x-calls", calls, "x-caller", caller(stream)))
		body := order(port)
		return stream.SendMsg(&body)
	}
}

func first(said metadata.MD, name string) string {
	if values := said.Get(name); len(values) > 0 {
		return values[0]
	}
	return ""
}

// caller is the SPIFFE ID of who calls, by its certificate.
func caller(stream grpc.ServerStream) string {
	if found, ok := peer.FromContext(stream.Context()); ok {
		if info, ok := found.AuthInfo.(credentials.TLSInfo); ok && info.SPIFFEID != nil {
			return info.SPIFFEID.String()
		}
	}
	return ""
}

type server interface {
	Serve(net.Listener) error
	Stop()
}

func serve(addresses []string, isXds bool) error {
	answers := &program{calls: map[string]int{}}
	for _, address := range addresses {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return err
		}
		options := []grpc.ServerOption{grpc.UnknownServiceHandler(answers.at(port)), grpc.ForceServerCodec(raw{})}
		made, err := open(options, isXds)
		if err != nil {
			return err
		}
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		go func() {
			if err := made.Serve(listener); err != nil {
				fmt.Fprintln(os.Stderr, address, err)
			}
		}()
		defer made.Stop()
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func open(options []grpc.ServerOption, isXds bool) (server, error) {
	if !isXds {
		mutual, err := mutualTLS()
		if err != nil {
			return nil, err
		}
		return grpc.NewServer(append(options, grpc.Creds(mutual))...), nil
	}
	trusted, err := xdscredentials.NewServerCredentials(
		xdscredentials.ServerOptions{FallbackCreds: insecure.NewCredentials()},
	)
	if err != nil {
		return nil, err
	}
	return xds.NewGRPCServer(append(options, grpc.Creds(trusted))...)
}

// bootstrap is what of gRPC's bootstrap names files.
type bootstrap struct {
	Providers map[string]struct {
		Config struct {
			Certificate string `json:"certificate_file"`
			Key         string `json:"private_key_file"`
			Roots       string `json:"ca_certificate_file"`
		} `json:"config"`
	} `json:"certificate_providers"`
}

// mutualTLS is by the files that the bootstrap names.
func mutualTLS() (credentials.TransportCredentials, error) {
	text, err := os.ReadFile(os.Getenv("GRPC_XDS_BOOTSTRAP"))
	if err != nil {
		return nil, err
	}
	var said bootstrap
	if err := json.Unmarshal(text, &said); err != nil {
		return nil, err
	}
	files := said.Providers["meshwarden"].Config
	pair, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(files.Roots)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate", files.Roots)
	}
	return credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    roots,
		MinVersion:   tls.VersionTLS13,
	}), nil
}
