# The CUDA library: its architectures, and whether it is installed or only compiled as a check.

set(architecture_list "${DMLFAST_CUDA_ARCH_LIST}")
if(NOT architecture_list)
  # Of the default list what this compiler knows; a list that was given is taken as it is.
  execute_process(COMMAND ${nvcc} --list-gpu-code OUTPUT_VARIABLE known_code)
  foreach(architecture 7.5 8.0 8.6 8.9 9.0a 10.0 12.0+PTX)
    string(REGEX REPLACE "[.]|[+]PTX" "" code "sm_${architecture}")
    string(REGEX REPLACE "a$" "" code "${code}")
    if(known_code MATCHES "${code}(\n|$)")
      list(APPEND architecture_list ${architecture})
    else()
      message(STATUS "dmlfast: ${nvcc} does not know CUDA architecture ${architecture}; left out")
    endif()
  endforeach()
endif()
string(REGEX REPLACE "[ ,;]+" ";" architecture_list "${architecture_list}")
list(REMOVE_ITEM architecture_list "")
if(NOT architecture_list)
  message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST: expected architectures such as 8.0;9.0a;12.0+PTX, "
          "got none.")
endif()

# Sources are translated once for 8.0 and all that is newer, which nothing in them tells apart: half
# of a compile's time is before machine code. Architectures with features of their own stand alone.
set(code_options)
set(code_names)
foreach(architecture IN LISTS architecture_list)
  if(NOT architecture MATCHES "^([0-9]+)\\.([0-9])([a-f]?)(\\+PTX)?$")
    message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST: expected architectures such as 8.0;9.0a;12.0+PTX, "
            "got '${architecture}'.")
  endif()
  set(virtual "${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3}")
  set(code "sm_${virtual}")
  if(NOT CMAKE_MATCH_3 AND virtual GREATER 80)
    set(virtual 80)
  endif()
  list(APPEND code_options "--generate-code=arch=compute_${virtual},code=${code}")
  list(APPEND code_names ${code})
  if(CMAKE_MATCH_4)
    list(APPEND code_options "--generate-code=arch=compute_${virtual},code=compute_${virtual}")
    list(APPEND code_names sm_${virtual}.ptx)
  endif()
endforeach()
list(REMOVE_DUPLICATES code_options)
list(REMOVE_DUPLICATES code_names)
set(CMAKE_CUDA_ARCHITECTURES OFF)
list(JOIN architecture_list " " cuda_architectures)

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)

# Kernels know no torch: its headers would be parsed again for every architecture. The .cpp files
# check tensors and launch.
set(cuda_sources
  csrc/cuda/clusters_kmeans.cpp
  csrc/cuda/clusters_kmeans.cu
  csrc/cuda/clusters_means.cpp
  csrc/cuda/clusters_means.cu
  csrc/cuda/clusters_seeds.cpp
  csrc/cuda/clusters_seeds.cu
  csrc/cuda/clusters_soft.cpp
  csrc/cuda/clusters_soft.cu
  csrc/cuda/clusters_soft_gradient.cu
  csrc/cuda/contrast_sums.cpp
  csrc/cuda/contrast_sums.cu
  csrc/cuda/contrast_sums_gradient.cu
  csrc/cuda/contrast_triplet.cpp
  csrc/cuda/contrast_triplet.cu
  csrc/cuda/contrast_triplet_bounds.cu
  csrc/cuda/contrast_triplet_gradient.cu
  csrc/cuda/engine/class_ranges.cu
  csrc/cuda/engine/collect.cu
  csrc/cuda/engine/gradient_rows.cu
  csrc/cuda/engine/group_order.cu
  csrc/cuda/engine/pack.cu
  csrc/cuda/engine/window.cu
  csrc/cuda/neighbors.cpp
  csrc/cuda/neighbors_gradient.cu
  csrc/cuda/neighbors_sample.cpp
  csrc/cuda/neighbors_sample.cu
  csrc/cuda/neighbors_select.cu
  csrc/cuda/neighbors_top.cpp
  csrc/cuda/neighbors_top.cu
  csrc/cuda/pairwise.cpp
  csrc/cuda/pairwise.cu
  csrc/cuda/pairwise_gradient.cu
  csrc/cuda/pairwise_moments.cu
  csrc/cuda/ranking.cpp
  csrc/cuda/ranking.cu
  csrc/cuda/ranking_synthesis.cpp
  csrc/cuda/ranking_synthesis.cu
  csrc/cuda/structure.cpp
  csrc/cuda/structure.cu
  csrc/cuda/structure_clusters.cpp
  csrc/cuda/structure_clusters.cu
  csrc/cuda/structure_clusters_gradient.cu
  csrc/cuda/structure_gradient.cu)

if(DMLFAST_TORCH_CUDA)
  add_library(_C_cuda MODULE ${cuda_sources})
  set_target_properties(_C_cuda PROPERTIES PREFIX "" CXX_VISIBILITY_PRESET hidden
                        CUDA_VISIBILITY_PRESET hidden)
  target_link_directories(_C_cuda PRIVATE ${DMLFAST_TORCH_LIBRARIES})
  target_link_options(_C_cuda PRIVATE -Wl,--no-as-needed)
  target_link_libraries(_C_cuda PRIVATE torch torch_cpu c10 torch_cuda c10_cuda)
  install(TARGETS _C_cuda LIBRARY DESTINATION .)
  set(cuda_status "on (${cuda_architectures}, CUDA ${CMAKE_CUDA_COMPILER_VERSION})")
else()
  add_library(_C_cuda OBJECT ${cuda_sources})
  set(cuda_status
    "compiled as a check (${cuda_architectures}), not installed: the torch of the build has no CUDA")
endif()

target_link_libraries(_C_cuda PRIVATE common)
target_include_directories(_C_cuda PRIVATE csrc/cuda)
target_include_directories(_C_cuda SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_compile_definitions(_C_cuda PRIVATE USE_CUDA)
# Device arithmetic keeps its roundings too: no contraction to fused multiply-add.
set(host_flags -Wall ${prefix_maps})
list(FILTER host_flags EXCLUDE REGEX "[ ,]")  # nvcc cannot hand these on
list(JOIN host_flags "," host_flags)
# --threads=0: a source's architectures compile beside each other.
target_compile_options(_C_cuda PRIVATE
  "$<$<COMPILE_LANGUAGE:CUDA>:-fmad=false;--threads=0;${code_options};-Xcompiler=${host_flags}>"
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;${prefix_maps}>")

# What tests/test_cuda_code.py reads.
list(JOIN code_names "\", \"" quoted_code)
file(GENERATE OUTPUT cuda_code.json CONTENT
"{
  \"compiler\": \"${CMAKE_CUDA_COMPILER}\",
  \"code\": [\"${quoted_code}\"],
  \"objects\": [\"$<JOIN:$<FILTER:$<TARGET_OBJECTS:_C_cuda>,INCLUDE,[.]cu[.]o$>,\", \">\"]
}
")
