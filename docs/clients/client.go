// Encrypts and decrypts with the standard library alone: go run client.go
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"time"
)

var client = http.Client{Timeout: 15 * time.Second}

// Refused is what the service says instead of an answer.
type Refused struct {
	Status int    `json:"status"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

func (r *Refused) Error() string { return r.Code + ": " + r.Detail }

// Sealed is an envelope and what it was made with. A []byte is base64 in JSON.
type sealed struct {
	Plaintext  []byte `json:"plaintext,omitempty"`
	Ciphertext string `json:"ciphertext,omitempty"`
	AAD        []byte `json:"aad,omitempty"`
	Chain      string `json:"chain,omitempty"`
}

type answer struct {
	Plaintext  []byte `json:"plaintext"`
	Ciphertext string `json:"ciphertext"`
}

// call makes a call; 429 and 503 say when it is worth another try.
func call(path string, request sealed) (*answer, error) {
	server := os.Getenv("KMS_PROXY_SERVER")
	if server == "" {
		server = "http://127.0.0.1:8080"
	}
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		response, err := client.Post(server+path, "application/json", bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		defer response.Body.Close()
		if response.StatusCode == http.StatusOK {
			made := new(answer)
			return made, json.NewDecoder(response.Body).Decode(made)
		}
		seconds, err := strconv.Atoi(response.Header.Get("Retry-After"))
		if err == nil && try < 3 {
			time.Sleep(time.Duration(seconds) * time.Second)
			continue
		}
		refused := new(Refused)
		if err := json.NewDecoder(response.Body).Decode(refused); err != nil {
			return nil, err
		}
		return nil, refused
	}
}

func main() {
	// The AAD binds the ciphertext to its place: moved to another row, it does not open.
	made, err := call("/v1/encrypt", sealed{Plaintext: []byte("hello"), AAD: []byte("row 7")})
	if err != nil {
		log.Fatal(err)
	}
	opened, err := call("/v1/decrypt", sealed{Ciphertext: made.Ciphertext, AAD: []byte("row 7")})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(opened.Plaintext))

	_, err = call("/v1/decrypt", sealed{Ciphertext: made.Ciphertext, AAD: []byte("row 8")})
	var refused *Refused
	if !errors.As(err, &refused) {
		log.Fatal("it opened: ", err)
	}
	fmt.Println("refused:", refused.Code)
}
