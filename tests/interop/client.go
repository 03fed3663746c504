package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"strings"
	"sync"
	"time"
	"unicode"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	xdscredentials "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// asked is a line: what to call, how often, and how many at a time.
type asked struct {
	Target      string            `json:"target"`
	Method      string            `json:"method"`
	TimeoutS    float64           `json:"timeout_s"`
	Metadata    map[string]string `json:"metadata"`
	Count       int               `json:"count"`
	Concurrency int               `json:"concurrency"`
}

// answer is what became of the calls: how many ended by which code, and were answered by which version to whom.
type answer struct {
	Codes    map[string]int `json:"codes"`
	Details  string         `json:"details"`
	Versions map[string]int `json:"versions"`
	Callers  map[string]int `json:"callers"`
	Calls    map[string]int `json:"calls"`
	Cookies  []string       `json:"cookies"`

	lock sync.Mutex
}

// The samples' one method, and its request for the order "1".
const get = "/meshwarden.examples.v1.Orders/Get"

var request = []byte{0x0a, 1, '1'}

func call(in io.Reader, out io.Writer) error {
	channels := map[string]*grpc.ClientConn{}
	lines, answers := bufio.NewScanner(in), json.NewEncoder(out)
	for lines.Scan() {
		said := asked{Method: get, TimeoutS: 10, Count: 1, Concurrency: 1}
		if err := json.Unmarshal(lines.Bytes(), &said); err != nil {
			return err
		}
		channel := channels[said.Target]
		if channel == nil {
			made, err := dial(said.Target)
			if err != nil {
				return err
			}
			channel, channels[said.Target] = made, made
		}
		if err := answers.Encode(all(channel, said)); err != nil {
			return err
		}
	}
	return lines.Err()
}

func dial(target string) (*grpc.ClientConn, error) {
	trusted, err := xdscredentials.NewClientCredentials(
		xdscredentials.ClientOptions{FallbackCreds: insecure.NewCredentials()},
	)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(target, grpc.WithTransportCredentials(trusted))
}

// all makes all calls of a line.
func all(channel *grpc.ClientConn, said asked) *answer {
	found := &answer{
		Codes: map[string]int{}, Versions: map[string]int{}, Callers: map[string]int{}, Calls: map[string]int{},
		Cookies: []string{},
	}
	left := make(chan struct{}, said.Count)
	for range said.Count {
		left <- struct{}{}
	}
	close(left)
	var workers sync.WaitGroup
	for range said.Concurrency {
		workers.Go(func() {
			for range left {
				found.once(channel, said)
			}
		})
	}
	workers.Wait()
	return found
}

// once makes a call and notes what became of it.
func (a *answer) once(channel *grpc.ClientConn, said asked) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(said.TimeoutS*float64(time.Second)))
	defer cancel()
	ctx = metadata.NewOutgoingContext(ctx, metadata.New(said.Metadata))
	var body []byte
	var header, trailer metadata.MD
	err := channel.Invoke(
		ctx, said.Method, &request, &body, grpc.ForceCodec(raw{}), grpc.Header(&header), grpc.Trailer(&trailer),
	)
	a.lock.Lock()
	defer a.lock.Unlock()
	a.Codes[name(status.Code(err))]++
	if err != nil {
		a.Details = status.Convert(err).Message()
		return
	}
	if version := versionOf(body); version != "" {
		a.Versions[version]++
	}
	a.Callers[first(trailer, "x-caller")]++
	a.Cookies = append(a.Cookies, header.Get("set-cookie")...)
	if calls := first(trailer, "x-calls"); calls != "" {
		_ = json.Unmarshal([]byte(calls), &a.Calls)
	}
}

// name is a code as the protocol writes it: DEADLINE_EXCEEDED.
func name(code codes.Code) string {
	switch code {
	case codes.OK:
		return "OK"
	case codes.Canceled:
		return "CANCELLED"
	}
	var found strings.Builder
	for at, letter := range code.String() {
		if at > 0 && unicode.IsUpper(letter) {
			found.WriteByte('_')
		}
		found.WriteRune(unicode.ToUpper(letter))
	}
	return found.String()
}
