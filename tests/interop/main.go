// Command peer is a gRPC server or client of Go's own, without any knowledge of the mesh but its environment
// (GRPC_XDS_BOOTSTRAP); run by test_go.py.
//
//	peer server ADDRESS…   serves every method over xDS at each address
//	peer tls ADDRESS…      the same without xDS, by the same certificates
//	peer client            reads lines of JSON and answers each by one
//
// A call with `x-do: fail` ends with UNAVAILABLE, as one with `x-fail: PORT` does at that port; one with `x-do: slow`
// ends not before its caller gives up, one with `x-hold: SECONDS` after that time (with `x-hold-at: PORT` only there).
// What a server answers is an Order of the samples, whose version is the port; its trailer says who called (`x-caller`)
// and how often each method was called (`x-calls`). Both stop at the end of their standard input.
package main

import (
	"fmt"
	"os"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "client":
		err = call(os.Stdin, os.Stdout)
	case len(os.Args) > 2 && (os.Args[1] == "server" || os.Args[1] == "tls"):
		err = serve(os.Args[2:], os.Args[1] == "server")
	default:
		err = fmt.Errorf("usage: %s client | server ADDRESS… | tls ADDRESS…", os.Args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
