package main

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// raw hands messages on as the bytes that they are.
type raw struct{}

func (raw) Marshal(message any) ([]byte, error) {
	body, ok := message.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("not bytes: %T", message)
	}
	return *body, nil
}

func (raw) Unmarshal(data []byte, message any) error {
	body, ok := message.(*[]byte)
	if !ok {
		return fmt.Errorf("not bytes: %T", message)
	}
	*body = append([]byte(nil), data...)
	return nil
}

func (raw) Name() string { return "proto" }

// Of meshwarden.examples.v1.Order.
const versionField protowire.Number = 2

// order is an Order of a version.
func order(version string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, versionField, protowire.BytesType), version)
}

// versionOf reads an Order's version; empty if it has none.
func versionOf(body []byte) string {
	for len(body) > 0 {
		number, kind, size := protowire.ConsumeTag(body)
		if size < 0 {
			return ""
		}
		body = body[size:]
		if number == versionField && kind == protowire.BytesType {
			value, _ := protowire.ConsumeString(body)
			return value
		}
		if size = protowire.ConsumeFieldValue(number, kind, body); size < 0 {
			return ""
		}
		body = body[size:]
	}
	return ""
}
